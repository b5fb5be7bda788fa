"""The idea of attnpass in one page of plain torch.fx: `python examples/tiny_pass.py`.

A `torch.compile` backend gets each graph of a model. This one finds one spelling of softmax
attention, `(q @ k.transpose(-2, -1) * scale).softmax(dim=-1) @ v`, and puts another function of
(q, k, v, scale) there. attnpass does the same and more, stage by stage:

- `attnpass/graph/normal_form.py` first gives every spelling one vocabulary. Here `torch.matmul`,
  `F.softmax`, a mask or a cast between the steps are simply not found.
- `attnpass/matching/axes.py` proves that `k` holds tokens by features. Here channel attention,
  where `q` and `k` are `[B, H, features, tokens]`, is taken for attention, and the result is
  wrong. This is why a pattern alone is not enough.
- `attnpass/matching/masks.py` proves causality and padding; `attnpass/matching/legality.py` says
  which form can replace which attention; a decline names the reason.
- `attnpass/plan/plan.py` chooses a form per layer and holds its trained parameters;
  `attnpass/recover/` wins back the accuracy that another function costs.
- `attnpass/compiled/` hands the result to inductor; the tuner measures whether it was worth it.

Shapes: B batch, H heads, T queries, S keys, d head dim.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

Form = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""`(q [B, H, T, d], k [B, H, S, d], v [B, H, S, d], scale) -> [B, H, T, d]`."""


def softmax(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The same function by a fused operator: if the match is right, nothing changes."""
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def sigmoid(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Sigmoid attention with bias -log S (2409.04431): rows need no sum, so no second pass."""
    return torch.sigmoid(q @ k.mT * scale - math.log(k.shape[-2])) @ v


def match(weights: fx.Node) -> tuple[fx.Node, tuple[fx.Node, fx.Node, fx.Node, float]] | None:
    """The product to replace and its (q, k, v, scale); None where the spelling is another."""
    if (weights.op, weights.target, weights.kwargs) != ("call_method", "softmax", {"dim": -1}):
        return None
    scaled = weights.args[0]
    if scaled.target is not operator.mul or not isinstance(scaled.args[1], float):
        return None
    scores, (out, *elsewhere) = scaled.args[0], weights.users
    if scores.target is not operator.matmul or scores.args[1].target != "transpose":
        return None
    k, *axes = scores.args[1].args
    if elsewhere or out.target is not operator.matmul or out.args[0] is not weights:
        return None  # the weights are read elsewhere, or are not what multiplies the values
    return (out, (scores.args[0], k, out.args[1], scaled.args[1])) if axes == [-2, -1] else None


def tiny_pass(gm: fx.GraphModule, inputs: list[Tensor], form: Form, log: list[str]) -> Callable:
    """Rewrite every match in `gm` to `form`; `log` gets the names of the replaced nodes."""
    for node in list(gm.graph.nodes):
        found = match(node)
        if found is not None:
            out, operands = found
            with gm.graph.inserting_before(out):
                new = gm.graph.call_function(form, operands)
            out.replace_all_uses_with(new)
            log.append(out.name)
    gm.graph.eliminate_dead_code()  # the old product, softmax and scaling have no users now
    gm.recompile()
    return gm.forward  # attnpass calls inductor here


class Layer(nn.Module):
    """Self attention of `heads` heads on `[B, T, width]`."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, width]`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1) @ v  # [B, H, T, d]
        return self.proj(out.transpose(1, 2).flatten(2))


def main() -> None:
    """Two layers, rewritten to each form, compared with eager."""
    torch.manual_seed(0)
    model, x = nn.Sequential(Layer(), Layer()).eval(), torch.randn(2, 50, 64)
    for form in (softmax, sigmoid):
        log: list[str] = []
        torch.compiler.reset()
        backend = functools.partial(tiny_pass, form=form, log=log)
        with torch.no_grad():
            moved = (torch.compile(model, backend=backend)(x) - model(x)).abs().max().item()
        print(f"{form.__name__}: {len(log)} sites rewritten, differs from eager by {moved:.1e}")


if __name__ == "__main__":
    main()
