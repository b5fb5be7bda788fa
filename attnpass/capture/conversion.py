"""``convert``: a captured graph under a plan as a plain module, no compiler involved.

What is refused here, because no check at a call could cover it: a model that changes its own
attributes or its arguments, results that the graph does not make, and numbers among the results
that depend on sizes. What a call must fulfil is in ``conversion_guards``.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from attnpass.capture.capture import Capture, buffers_kept, fresh_entry, frozen_parameters
from attnpass.capture.captured import CapturedGraph
from attnpass.capture.conversion_guards import Gradients, is_plain, needs
from attnpass.capture.converted import Converted
from attnpass.capture.single_item import first_items, sizes_between
from attnpass.errors import CaptureError
from attnpass.plan import Plan
from attnpass.torch_internals import (
    TracingContext,
    any_convolution,
    argument_fakes,
    dynamo_exceptions,
    maybe_dynamic,
    pytree,
    schema,
    unmark_dynamic,
)

log = logging.getLogger("attnpass")


@any_convolution()
def convert(model: nn.Module, plan: Plan, *args: Any, **kwargs: Any) -> nn.Module:
    """A plain module that computes ``model`` under ``plan``, no compiler involved.

    It shares the model's parameters and buffers and the plan's parameters, is differentiable, and
    takes what the example covers: the same structure, dtypes, devices and plain values, and any
    size for which the model runs the same graph (an axis of size 1 stays 1; a batch of several
    may become one item where the graph is proven to be the same). Training or
    evaluation mode, autocast and default dtype are those of the conversion. A call that is not
    covered raises a CaptureError; it never computes something else.

    The model's Python attributes, and tensors in it that are neither parameter nor buffer, are as
    they were. A parameter that is put in another's place (``load_state_dict(assign=True)``) is
    seen where it is put: in the module that is returned, or in the model, not in both.

    Raises:
        CaptureError: the model does not capture as one graph, takes or returns what no graph
            can carry, or changes its arguments or its own attributes.
    """
    kwargs = dict(sorted(kwargs.items()))
    args, kwargs = _without_bases((args, kwargs))
    leaves = pytree.tree_leaves((args, kwargs))
    _refuse_leaves(model, leaves)
    made, fakes = _converted(model, plan, args, kwargs)
    _add_single(made, fakes, model, plan, (args, kwargs))
    return made


def _converted(
    model: nn.Module,
    plan: Plan,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    strict: bool = False,
) -> tuple[Converted, dict[int, Tensor]]:
    """The module of one capture, and the fake tensors of its arguments by position.

    ``strict``: under the plan as it is, or not at all.
    """
    leaves = pytree.tree_leaves((args, kwargs))
    before = _attributes(model)
    capture, result = _captured(model, plan, args, kwargs)
    changed = [name for name, x in _attributes(model).items() if not _same(before.get(name), x)]
    if changed:
        raise CaptureError(
            f"expected a model that leaves its attributes as they are, got one that changes"
            f" {changed[0]}; return the value, or write into a buffer in place"
        )
    _refuse_results(capture.graphs[0], result, leaves)
    capture.bind_plan(plan)
    capture.use(plan, strict=strict)
    fakes = _fakes(capture.graphs[0], (args, kwargs), leaves)
    given = args, kwargs
    gradients = functools.partial(_gradients, capture, given)
    return Converted(model, capture.graphs[0], fakes, given, result, gradients), fakes


def _add_single(
    made: Converted, fakes: dict[int, Tensor], model: nn.Module, plan: Plan, given: Any
) -> None:
    """Let a module take one item too, where its graph is proven to be that of one."""
    leaves, spec = pytree.tree_flatten(given)
    item = first_items(leaves)
    if item is None:
        return
    before = _attributes(model)
    try:
        one, own = _converted(model, plan, *pytree.tree_unflatten(item, spec), strict=True)
    except Exception as error:  # the model need not run on one item
        log.debug("not converted for one item: %s", error)
    else:
        made.add(one, sizes_between(fakes, own))
    changed = [name for name, x in _attributes(model).items() if not _same(before.get(name), x)]
    if changed:
        raise CaptureError(
            "expected a model that leaves its attributes as they are, got one that changes"
            f" {changed[0]} for one item; return the value, or write into a buffer in place"
        )


def _without_bases(given: Any) -> Any:
    """The arguments, each view as a tensor of its own: Dynamo would follow its base."""
    made: dict[int, Tensor] = {}

    def own(x: Any) -> Any:
        if not isinstance(x, Tensor) or x._base is None:
            return x
        if id(x) not in made:
            made[id(x)] = x.detach().clone().requires_grad_(x.requires_grad)
        return made[id(x)]

    return pytree.tree_map(own, given)


class _Recorded(Capture):
    """A capture that keeps the text of Dynamo's own graph; ``axes`` are symbolic, or all."""

    def __init__(self, model: nn.Module, axes: int | None) -> None:
        super().__init__(model)
        self.axes, self.text = axes, ""

    def once(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of one recorded call; the model's buffers stay as they were."""
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        with _dynamic(tensors, self.axes), buffers_kept(self.model), warnings.catch_warnings():
            # Dynamo looks at the gradient of what runs after a graph break, which is refused below
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor")
            return self.record(*args, **kwargs)

    def _backend(self, gm: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.text = _text(gm)
        return super()._backend(gm, inputs)


def _text(gm: fx.GraphModule) -> str:
    """A graph, all graphs in it and their conditions: what tells two captures of a model apart."""
    context = TracingContext.try_get()
    env = context.fake_mode.shape_env if context and context.fake_mode else None
    conditions = sorted(str(guard.expr) for guard in env.guards) if env else []
    return "\n".join([m.code for m in gm.modules() if isinstance(m, fx.GraphModule)] + conditions)


def _captured(
    model: nn.Module, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[_Recorded, Any]:
    """The model captured as one graph with every size symbolic, and its result.

    Where that fails, breaks, or misses a site of the plan, and where the plan has skipat, only the
    first axes are symbolic.
    """
    found: list[tuple[int, _Recorded, Any]] = []
    # the rows and columns of patches, over which skipat convolves, are known as numbers alone
    numbers = any(entry.form == "skipat" for entry in plan.sites.values())
    for axes in (1,) if numbers else (None, 1):
        capture = _Recorded(model, axes)
        try:
            result = capture.once(args, kwargs)
        except dynamo_exceptions():
            if axes is None:
                continue
            raise
        if capture.calls != 1 and axes is None:
            continue
        if capture.calls != 1:
            raise CaptureError(
                f"expected a model that captures as one graph, got {capture.calls} calls of"
                " graphs; use torch.compile(model, backend='attnpass') or remove the graph breaks"
            )
        legal = {s.name: {f for f, no in s.legal.items() if no is None} for s in capture.sites}
        fit = sum(entry.form in legal.get(name, ()) for name, entry in plan.sites.items())
        found.append((fit, capture, result))
        if fit == len(plan.sites):
            break
    _, capture, result = max(found, key=lambda one: one[0])
    return capture, result


@contextmanager
def _dynamic(tensors: Sequence[Tensor], axes: int | None) -> Iterator[None]:
    """Inside, sizes above 1 of the first ``axes`` axes, or of all, are symbolic where they can."""
    for tensor in tensors:
        for axis, size in enumerate(tensor.shape[:axes]):
            if size > 1:
                maybe_dynamic(tensor, axis)
    try:
        yield
    finally:
        for tensor in tensors:
            unmark_dynamic(tensor)


def _refuse_leaves(model: nn.Module, leaves: list[Any]) -> None:
    """Refuse arguments that may hide a tensor, or that the graph takes for the model's own."""
    own = {id(x) for x in (*model.parameters(), *model.buffers())}
    for x in leaves:
        if isinstance(x, Tensor) and type(x) not in (Tensor, nn.Parameter):
            raise CaptureError(f"expected plain tensors, got a {type(x).__name__}; unwrap it")
        if id(x) in own:
            raise CaptureError(
                "expected arguments that are not the model's parameters or buffers, got one;"
                " convert with a copy"
            )
        if not isinstance(x, Tensor) and not is_plain(x):
            raise CaptureError(
                f"expected tensors and plain values in tuples, lists and dicts, got a"
                f" {type(x).__name__}; register it with torch.export.register_dataclass or pass"
                " its parts"
            )


def _attributes(model: nn.Module) -> dict[str, Any]:
    """What the modules of a model hold, by path: attributes, parameters and buffers."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        held = {**vars(module), **module._parameters, **module._buffers}
        found |= {f"{path}.{name}".lstrip("."): x for name, x in held.items()}
    return found


def _same(a: Any, b: Any) -> bool:
    return a is b or (is_plain(a) and type(a) is type(b) and a == b)


def _refuse_results(graph: CapturedGraph, result: Any, leaves: list[Any]) -> None:
    """Refuse what a graph alone would lose: numbers of sizes, values kept elsewhere, writes."""
    assert graph.last is not None
    inputs, outputs = graph.last
    found = pytree.tree_leaves(result)
    if any(isinstance(x, (int, float)) for x in found) and not all(
        isinstance(x, Tensor) for x in outputs
    ):
        raise CaptureError(
            "expected a model that returns tensors, got a number that changes with the sizes of"
            " its arguments; wrap it to return tensors"
        )
    kept = [x for x in outputs if isinstance(x, Tensor) and not any(x is y for y in found)]
    if kept:
        raise CaptureError(
            "expected a model that returns what it computes, got one that keeps a tensor elsewhere"
            " (an attribute, a list, a cache); return it, or write into a buffer in place"
        )
    given = {id(x) for x in leaves if isinstance(x, Tensor)}
    placeholders = graph.normal.graph.find_nodes(op="placeholder")
    arguments = {n for n, x in zip(placeholders, inputs, strict=True) if id(x) in given}
    for node in graph.normal.graph.nodes:
        known = schema(node)
        if known is not None and known.is_mutable and arguments & set(node.all_input_nodes[:1]):
            raise CaptureError(
                "expected a model that leaves its arguments as they are, got one that writes into"
                " one; let it write into a copy or a buffer"
            )


class _Seen(Exception):
    """Carries the text of a graph out of a call that is not to run."""


def _probed(
    model: nn.Module, axes: int | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str:
    """The text of Dynamo's graph for a call; nothing runs. Empty where none is made."""

    def backend(gm: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        text = _text(gm)

        def stop(*_: Any) -> None:
            raise _Seen(text)

        return stop

    tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    with _dynamic(tensors, axes):
        try:
            torch.compile(fresh_entry(model), backend=backend)(*args, **kwargs)
        except _Seen as seen:
            return str(seen)
        except dynamo_exceptions():
            return ""
    return ""


def _gradients(capture: _Recorded, given: Any, state: list[Tensor], plain: bool) -> Gradients:
    """The ways of taking gradients in which the model gives the graph that was captured.

    Each is tried: with and without arguments that need gradients, with gradients switched off, and
    with all parameters frozen. ``plain``: whether the results hold a value that is no
    tensor; the text does not show where that comes from, so that nothing else is covered.
    """
    leaves, spec = pytree.tree_flatten(given)
    now, own = (torch.is_grad_enabled(), needs(leaves)), needs(state)
    calls, states = [now], [own]
    if plain:
        return Gradients((now,), (own,))

    def gives_the_same(grad: bool, wanted: bool) -> bool:
        args, kwargs = pytree.tree_unflatten(_needing(leaves, wanted), spec)
        with torch.set_grad_enabled(grad):
            return _probed(capture.model, capture.axes, args, kwargs) == capture.text

    for grad, wanted in ((True, False), (True, True), (False, False)):
        way = (grad, needs(_needing(leaves, wanted)))
        if way not in calls and gives_the_same(grad, wanted):
            calls.append(way)
    with frozen_parameters(capture.model):
        frozen = needs(state)
        if frozen != own and gives_the_same(True, False):
            states.append(frozen)
    return Gradients(tuple(calls), tuple(states))


def _needing(leaves: list[Any], wanted: bool) -> list[Any]:
    """The leaves with tensors of their own that need gradients, or do not, where they can."""
    own: dict[int, Tensor] = {}
    for x in leaves:
        if isinstance(x, Tensor) and id(x) not in own:
            can = x.is_floating_point() or x.is_complex()
            own[id(x)] = x.detach().requires_grad_(wanted and can)
    return [own[id(x)] if isinstance(x, Tensor) else x for x in leaves]


def _fakes(graph: CapturedGraph, given: Any, leaves: list[Any]) -> dict[int, Tensor]:
    """The fake tensor of every argument that Dynamo read, by its position.

    Raises:
        CaptureError: a tensor among the arguments is found by no path.
    """
    like = next((x for x in graph.placeholders if isinstance(x, Tensor)), None)
    position = {id(x): i for i, x in reversed(list(enumerate(leaves)))}
    # Dynamo also follows the tensor of which an argument is a view
    bases = {id(x._base) for x in leaves if isinstance(x, Tensor)} - position.keys()
    try:
        known = argument_fakes(like, *given) if like is not None else []
        return {position[id(x)]: fake for x, fake in known if id(x) not in bases}
    except LookupError as error:
        raise CaptureError(
            f"expected tensors in tuples, lists and dicts, got one at {error}; pass it by itself"
        ) from error
