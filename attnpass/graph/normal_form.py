"""Dynamo's graph as one functional, differentiable vocabulary: pre-dispatch ATen.

One operation has one spelling and a schema, module paths and source lines are kept, opaque
attention is opened, and in-place writes to fresh tensors become functional.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx.traceback as fx_traceback
from torch import Tensor, fx, nn

from attnpass.graph.aliasing import draws, is_impure
from attnpass.graph.composed import COMPOSED
from attnpass.graph.encoder_layer import _in_submodule, encoder_layer
from attnpass.graph.flex import Flex
from attnpass.graph.inplace import functionalize
from attnpass.graph.opaque import Opaque, enter, fold
from attnpass.graph.products import fold_products
from attnpass.graph.softmax import fold_softmax
from attnpass.torch_internals import (
    ENTER_AUTOCAST,
    EXIT_AUTOCAST,
    Autocast,
    FakeTensor,
    HigherOrderOperator,
    TracingContext,
    autocast_state,
    dynamo_exceptions,
    dynamo_source,
    encoder_layer_operator,
    hooks_set_aside,
    make_fx,
    set_added_input,
    set_autocast,
    set_dynamo_source,
    weight_sources,
)


class NormalizeError(Exception):
    """The graph cannot be re-traced; it goes to the inner compiler as it is."""


def normalize(gm: fx.GraphModule, inputs: list[Any]) -> fx.GraphModule:
    """``gm`` in pre-dispatch ATen, same placeholders in the same order.

    Must run inside a ``torch.compile`` backend: it uses Dynamo's own fake tensors, and a shape
    guard that it adds is one that Dynamo still collects and checks.

    Raises:
        NormalizeError: the graph cannot be re-traced.
    """
    return retrace(Opened(gm).run, gm, inputs)


def retrace(run: Any, like: fx.GraphModule, inputs: list[Any]) -> fx.GraphModule:
    """``run(*inputs)`` traced to functional ATen, with the metadata of the graph ``like``.

    Raises:
        NormalizeError: as ``normalize``.
    """
    context = TracingContext.try_get()
    if context is None or context.fake_mode is None:
        raise NormalizeError("no tracing context: not called from torch.compile")
    mode = context.fake_mode
    if any(isinstance(x, Tensor) and x.is_nested for x in inputs):
        raise NormalizeError("nested tensors are not read; pad them to one length, with a mask")
    try:
        fakes = [_fake(x, context) for x in inputs]
        # what is saved for a backward while tracing is no business of the user's hooks
        with mode, hooks_set_aside(), fx_traceback.preserve_node_meta():
            out = tidy(make_fx(run, *fakes, opened=COMPOSED))
        _refuse_lifted(out)
    except dynamo_exceptions():
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise NormalizeError(f"{type(error).__name__}: {first}") from error
    _carry_metadata(like, out)
    _describe_added(out, inputs, context)
    out.recompile()
    return out


def _refuse_lifted(gm: fx.GraphModule) -> None:
    """Refuse a graph into which a value of the trace itself was baked (``tensor.data``)."""
    for node in gm.graph.find_nodes(op="get_attr"):
        held = getattr(gm, str(node.target), None)
        if isinstance(held, FakeTensor) and held.constant is None:
            raise RuntimeError("a tensor is read past autograd (.data)")


def tidy(gm: fx.GraphModule) -> fx.GraphModule:
    """A traced graph with one spelling for everything, in place: functional, no dead code."""
    functionalize(gm.graph)
    fold_products(gm.graph)
    fold_softmax(gm.graph)
    gm.graph.eliminate_dead_code(is_impure_node=lambda node: is_impure(node) or draws(node))
    gm.recompile()
    return gm


def _fake(x: Any, context: TracingContext) -> Any:
    """The fake twin of one example input, under Dynamo's own symbolic sizes."""
    if not isinstance(x, Tensor):
        return x
    known = context.tensor_to_context.get(x) if x in context.tensor_to_context else None
    assert context.fake_mode is not None
    return context.fake_mode.from_tensor(
        x,
        static_shapes=known is None,
        symbolic_context=known,
        source=None if known is None else known.tensor_source,  # type: ignore[attr-defined]
    )


def _carry_metadata(old: fx.GraphModule, new: fx.GraphModule) -> None:
    """What the inner compiler reads off Dynamo's graph: static inputs, sources, ids."""
    new.meta.update(old.meta)
    weight_sources(old, new)
    pairs = zip(
        old.graph.find_nodes(op="placeholder"),
        new.graph.find_nodes(op="placeholder"),
        strict=False,
    )
    for before, after in pairs:
        if "tensor_dict" in before.meta:
            after.meta["tensor_dict"] = before.meta["tensor_dict"]
        if dynamo_source(before) is not None:
            set_dynamo_source(after, dynamo_source(before))


def _describe_added(gm: fx.GraphModule, inputs: list[Any], context: TracingContext) -> None:
    """Inputs that Dynamo did not know (a form's parameters): their source, and that they stay.

    A part of a graph that torch split (DDP) has inputs without a source; it is None there.
    """
    for node, value in zip(gm.graph.find_nodes(op="placeholder"), inputs, strict=True):
        if dynamo_source(node) is not None:
            continue
        known = context.tensor_to_context.get(value) if isinstance(value, Tensor) else None
        if known is None:
            set_dynamo_source(node, None)
        else:
            set_added_input(node, known.tensor_source)  # type: ignore[attr-defined]


class Opened(fx.Interpreter):
    """Runs Dynamo's graph with attention operators and plain calls of bodies opened.

    Autocast regions are entered while they are traced, so that dtypes are those of a call.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(fold(gm))
        self._outside: list[tuple[str, Autocast]] = []

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The graph's results; autocast is afterwards as it was."""
        try:
            return super().run(*args, **kwargs)
        finally:
            while self._outside:
                set_autocast(*self._outside.pop())

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Open what has a body or a known meaning."""
        if target is ENTER_AUTOCAST:
            device, dtype, on, _ = args
            self._outside.append((device, autocast_state(device)))
            # casts that are kept would be those of another trace
            set_autocast(device, (on, dtype or torch.get_autocast_dtype(device), False))
        elif target is EXIT_AUTOCAST and self._outside:
            set_autocast(*self._outside.pop())
        if isinstance(target, Flex) and kwargs:  # recorded before
            return target.recorded(args, kwargs)
        if isinstance(target, (Opaque, Flex)):
            return target.traced(*args)
        if isinstance(target, HigherOrderOperator):
            body, given = enter(target, args)
            return Opened(body).run(*given)
        if target is encoder_layer_operator():
            with _in_submodule("self_attn", nn.MultiheadAttention):
                return encoder_layer(*args, **kwargs)
        return super().call_function(target, args, kwargs)
