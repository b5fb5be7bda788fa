"""A region under ``vmap`` becomes the operators on whole batches that vmap itself runs.

Soundness: these operators, recorded once, give the region's results and gradients. Conditions:

1. Nothing but vmap is nested in the region: no gradient, no tangent, no higher-order operator.
2. It calls no attention operator: under vmap these run kernels that no reader knows.
3. Neither gradients nor autocast nor another state of torch are switched in it.
4. Nothing is written in place, no random number is drawn, and no input wraps other tensors.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, fx

from attnpass.graph.aliasing import draws, is_impure
from attnpass.graph.nodes import twin
from attnpass.torch_internals import (
    HigherOrderOperator,
    disable_proxy_modes_tracing,
    dynamo_exceptions,
    is_wrapper_subclass,
    make_fx_below_autograd,
    pytree,
)

log = logging.getLogger(__name__)

aten = torch.ops.aten

_ENTER, _LEAVE = "_vmap_increment_nesting", "_vmap_decrement_nesting"

_STATES = ("autocast", "grad_enabled", "inference_mode", "nesting")
"""Parts of the names of calls that switch a state of torch."""

_ATTENTION = ("scaled_dot_product", "multi_head_attention", "encoder_layer", "flex_attention")
"""Parts of the names of attention operators."""


def is_batched(piece: fx.GraphModule) -> bool:
    """Whether a piece of Dynamo's graph is a region under vmap and nothing else: 1 to 3."""
    calls = [node for node in piece.graph.nodes if node.op.startswith("call_")]
    names = [getattr(node.target, "__name__", str(node.target)) for node in calls]
    plain = [name for name in names if name not in (_ENTER, _LEAVE)]
    return (
        _ENTER in names
        and not any(isinstance(node.target, HigherOrderOperator) for node in calls)
        and not any(part in name for name in plain for part in (*_STATES, *_ATTENTION))
    )


def batched(piece: fx.GraphModule, given: tuple[Any, ...]) -> fx.GraphModule | None:
    """The operators that a region under vmap runs; None where a condition does not hold.

    Args:
        piece: the region, ``is_batched``. given: its inputs in the graph that is being recorded.
    """
    if any(is_wrapper_subclass(x) for x in pytree.tree_leaves(given)):
        return None
    with disable_proxy_modes_tracing():
        own = pytree.tree_map_only(Tensor, lambda x: twin(x).requires_grad_(False), given)
        try:
            traced = make_fx_below_autograd(fx.Interpreter(piece).run, *own)
        except dynamo_exceptions():
            raise
        except Exception as error:  # an operator that has no rule, or one that asks for a value
            log.info("a region under vmap is not opened: %s: %s", type(error).__name__, error)
            return None
    for node in traced.graph.nodes:
        if node.target is aten.squeeze_.dims and len(node.args[0].users) == 1:
            node.target = aten.squeeze.dims  # how a product with a vector drops its axis
    inside = [node for node in traced.graph.nodes if node.op not in ("placeholder", "output")]
    plain = all(
        node.op == "call_function" and not is_impure(node) and not draws(node) for node in inside
    )
    return traced if plain else None
