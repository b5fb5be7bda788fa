"""What is known of axes across a graph break: of the tensors that one graph hands to the next.

Soundness: an input of a graph has the axes that it had as a result of an earlier graph.
Conditions:

1. It is the same tensor object with the same memory, sizes and strides.
2. An axis of several factors has numbers for sizes: symbols mean nothing in another graph.

Not covered: views and results that were computed between the two graphs; theirs are new inputs.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx
from torch.utils.weak import WeakTensorKeyDictionary

from attnpass.graph import normalize, value, weight_inputs
from attnpass.matching.factors import Axes, Axis, Factor, kinds, size_of
from attnpass.matching.facts import GraphFacts
from attnpass.torch_internals import (
    dynamo_exceptions,
    ends_in_break,
    expression,
    given_tensor,
)

log = logging.getLogger("attnpass")

_HANDED = WeakTensorKeyDictionary()
"""Axes, and how they lie in memory, by the tensors that graphs returned."""

_SERIAL = itertools.count()


def outgoing(gm: fx.GraphModule, inputs: Sequence[Any]) -> list[Axes | None]:
    """The axes of a graph's results where it ends in a graph break; nothing where none is known.

    Args:
        gm: Dynamo's graph. inputs: its example inputs. Called while the graph is compiled.
    """
    if not ends_in_break(gm):
        return []
    try:
        return _outgoing(gm, inputs)
    except dynamo_exceptions():
        raise
    except Exception as error:  # without it, the next graph knows less
        log.debug("the axes of a graph's results are not known: %s", error)
        return []


def _outgoing(gm: fx.GraphModule, inputs: Sequence[Any]) -> list[Axes | None]:
    normal = normalize(gm, list(inputs))
    parameters = weight_inputs(normal, inputs)
    facts = GraphFacts.of(normal.graph, parameters, received(gm, normal.graph, parameters))
    serial = next(_SERIAL)
    (output,) = normal.graph.find_nodes(op="output")
    results: Any = output.args[0]
    found = [_told(facts, facts.axes.get(x, ()), serial) for x in results]
    return found if any(axes is not None for axes in found) else []


def handing(run: Callable[..., Any], axes: Sequence[Axes | None]) -> Callable[..., Any]:
    """``run``, a compiled graph, which keeps the axes of its results: those of ``outgoing``."""
    if not axes:
        return run

    def kept(*inputs: Any) -> Any:
        results = run(*inputs)
        hand(results, axes)
        return results

    return kept


def same_axes(gm: fx.GraphModule, run: Callable[..., Any]) -> Callable[..., Any]:
    """``run``, the compiled graph, for inputs of the axes for which it was matched.

    Dynamo may use a graph again where another part of the program goes on in it; given tensors
    with other axes, it runs as it was. Called while the graph is compiled.
    """
    known = [handed(given_tensor(node)) for node in gm.graph.find_nodes(op="placeholder")]
    wanted = [(i, _kinds(axes)) for i, axes in enumerate(known) if axes is not None]
    if not wanted:
        return run

    def checked(*inputs: Any) -> Any:
        for i, kind in wanted:
            axes = handed(inputs[i])
            if axes is not None and _kinds(axes) != kind:
                return gm.forward(*inputs)
        return run(*inputs)

    return checked


def _kinds(axes: Axes) -> list[set[str]]:
    return [kinds(axis) for axis in axes]


def hand(results: Sequence[Any], axes: Sequence[Axes | None]) -> None:
    """Keep the axes of what a graph returned."""
    for x, known in zip(results, axes, strict=False):
        if known is not None and type(x) is Tensor:  # no subclass: its memory is not its own
            _HANDED[x] = known, _laid(x)


def _laid(x: Tensor) -> tuple[Any, ...]:
    """Where and how a tensor lies in memory."""
    return (x.data_ptr(), x.dtype, *x.shape, *x.stride())


def handed(x: Tensor | None) -> Axes | None:
    """The axes of a tensor that an earlier graph returned; None where it is another by now."""
    if x is None or type(x) is not Tensor:
        return None
    axes, laid = _HANDED.get(x, (None, ()))
    return axes if axes is not None and laid == _laid(x) else None


def _told(facts: GraphFacts, axes: Axes, serial: int) -> Axes | None:
    """The axes with names that mean the same in every graph; None where nothing is known."""
    if not any(kinds(axis) & {"token", "feature"} for axis in axes):
        return None

    def named(f: Factor) -> Factor:
        parts = tuple(tuple(map(named, axis)) for axis in f.parts)
        return Factor((f"{serial:09}:{facts.made((f,)):09}", f.id), f.size, f.kind, parts)

    return tuple(tuple(map(named, axis)) for axis in axes)


def received(
    gm: fx.GraphModule, graph: fx.Graph, parameters: set[fx.Node]
) -> Mapping[fx.Node, Axes]:
    """The axes of a graph's inputs that an earlier graph returned.

    Args:
        gm: Dynamo's graph, while it is compiled. graph: its normal form. parameters: its weights.
    """
    found = {}
    inputs = (gm.graph.find_nodes(op="placeholder"), graph.find_nodes(op="placeholder"))
    for old, new in zip(*inputs, strict=True) if len(_HANDED) else ():
        axes = handed(given_tensor(old)) if new not in parameters else None
        if axes is not None:
            pairs = zip(axes, value(new).shape, strict=True)
            found[new] = tuple(_fitted(a, s, new, i) for i, (a, s) in enumerate(pairs))
    return found


def _fitted(axis: Axis, size: Any, node: fx.Node, i: int) -> Axis:
    """An axis of an earlier graph in this one (condition 2)."""
    if all(isinstance(f.size, int) for f in axis) and size_of(axis) == size:
        return axis
    if len(axis) == 1:
        return (Factor(axis[0].id, expression(size), axis[0].kind),)
    return (Factor((node.name, i), expression(size), "input"),)
