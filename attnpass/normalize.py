"""Dynamo's graph as one functional, differentiable vocabulary: pre-dispatch ATen.

One operation has one spelling and a schema, module paths and source lines are kept, opaque
attention is opened, and in-place writes to fresh tensors become functional.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx.traceback as fx_traceback
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._guards import TracingContext
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx

from attnpass.functional import functionalize, is_impure
from attnpass.opaque import Opaque, enter, fold
from attnpass.spelled import fold_softmax


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
    try:
        fakes = [_fake(x, context) for x in inputs]
        with mode, fx_traceback.preserve_node_meta():
            out = tidy(make_fx(run, pre_dispatch=True)(*fakes))
        _refuse_lifted(out)
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
    fold_softmax(gm.graph)
    gm.graph.eliminate_dead_code(is_impure_node=is_impure)
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
    if hasattr(old, "_param_name_to_source"):
        new._param_name_to_source = old._param_name_to_source  # type: ignore[assignment]
    pairs = zip(
        old.graph.find_nodes(op="placeholder"),
        new.graph.find_nodes(op="placeholder"),
        strict=False,
    )
    for before, after in pairs:
        if "tensor_dict" in before.meta:
            after.meta["tensor_dict"] = before.meta["tensor_dict"]
        if hasattr(before, "_dynamo_source"):
            after._dynamo_source = before._dynamo_source  # type: ignore[attr-defined]


def _describe_added(gm: fx.GraphModule, inputs: list[Any], context: TracingContext) -> None:
    """Inputs that Dynamo did not know (a form's parameters): their source, and that they stay."""
    for node, value in zip(gm.graph.find_nodes(op="placeholder"), inputs, strict=True):
        if not hasattr(node, "_dynamo_source"):
            known = context.tensor_to_context[value]
            node._dynamo_source = known.tensor_source
            node.meta["tensor_dict"] = {"_dynamo_static_input_type": "unguarded"}


class Opened(fx.Interpreter):
    """Runs Dynamo's graph with attention operators and plain calls of bodies opened."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(fold(gm))

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Open what has a body or a known meaning."""
        if isinstance(target, Opaque):
            return target.traced(*args)
        if isinstance(target, torch._ops.HigherOrderOperator):
            body, given = enter(target, args)
            return Opened(body).run(*given)
        if target is torch._transformer_encoder_layer_fwd:
            with _in_submodule("self_attn", nn.MultiheadAttention):
                return encoder_layer(*args, **kwargs)
        return super().call_function(target, args, kwargs)


class _in_submodule:
    """Records the nodes made inside as if they stood in a submodule of the current one."""

    def __init__(self, name: str, kind: type) -> None:
        self.name, self.kind = name, kind

    def __enter__(self) -> None:
        meta = fx_traceback.current_meta
        self.before = meta.get("nn_module_stack")
        if self.before:
            path = f"{list(self.before.values())[-1][0]}.{self.name}"
            meta["nn_module_stack"] = {**self.before, f"attnpass_{path}": (path, self.kind)}

    def __exit__(self, *_: object) -> None:
        if self.before:
            fx_traceback.current_meta["nn_module_stack"] = self.before


def encoder_layer(
    src: Tensor,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Tensor,
    norm_bias_1: Tensor,
    norm_weight_2: Tensor,
    norm_bias_2: Tensor,
    ffn_weight_1: Tensor,
    ffn_bias_1: Tensor,
    ffn_weight_2: Tensor,
    ffn_bias_2: Tensor,
    mask: Tensor | None = None,
    mask_type: int | None = None,
) -> Tensor:
    """``torch._transformer_encoder_layer_fwd`` (the eval fast path) in primitives, ``[B, N, D]``.

    ``mask`` is True where *not* attended: ``[N, N]`` (type 0), ``[B, N]`` (1) or both merged.
    """

    def attend(x: Tensor) -> Tensor:
        sizes = (3, num_heads, embed_dim // num_heads)
        qkv = F.linear(x, qkv_weight, qkv_bias).unflatten(-1, sizes)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, H, N, d]
        keep = None if mask is None else mask.logical_not()
        if keep is not None and mask_type == 1:
            keep = keep[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
        return F.linear(out.transpose(1, 2).flatten(2), proj_weight, proj_bias)

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, (embed_dim,), weight, bias, eps)

    def feed(x: Tensor) -> Tensor:
        hidden = F.linear(x, ffn_weight_1, ffn_bias_1)
        hidden = F.gelu(hidden) if use_gelu else F.relu(hidden)
        return F.linear(hidden, ffn_weight_2, ffn_bias_2)

    if norm_first:
        src = src + attend(norm(src, norm_weight_1, norm_bias_1))
        return src + feed(norm(src, norm_weight_2, norm_bias_2))
    src = norm(src + attend(src), norm_weight_1, norm_bias_1)
    return norm(src + feed(src), norm_weight_2, norm_bias_2)
