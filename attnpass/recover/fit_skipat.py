"""Closed-form calibration: the parameters with which a form comes nearest to softmax.

Seconds, a few unlabelled batches, no gradients. Every site is fitted to the original model's own
activations, so a fit does not depend on which other sites are converted.
Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attnpass.forms import SkipAt, linear_as
from attnpass.recover.samples import Block

RIDGE = 3e-2
"""Of skipat's regressions, relative to the inputs' variance."""

LINEAR = 2.0
"""Mean, in deviations, of what skipat's GELUs get: there they are nearly straight."""

TAPS = 0.3
"""Norm of the random part of skipat's first convolution, beside 1 at a row itself."""


def _fit_skipat(module: SkipAt, blocks: Sequence[Block], learns: bool) -> float:
    """The nearest linear map of rank rD, then ridge regression of the last linear; no gate yet.

    GELU is nearly linear where its input is ``LINEAR`` deviations above 0; Phi bends from there.
    """
    wide = torch.promote_types(blocks[0][0].dtype, torch.float32)
    inputs = [
        (z[:, module.prefix :].to(wide), rows_kept(keep, module.prefix)) for z, _, keep in blocks
    ]
    wanted = [
        _kept(y[:, module.prefix :], rows).double()
        for (_, y, _), (_, rows) in zip(blocks, inputs, strict=True)
    ]
    if learns:
        linear = _ridge([_kept(x, rows).double() for x, rows in inputs], wanted)[:-1]
        found = torch.cat([_kept(x, rows) for x, rows in inputs]).double() @ linear
        _, directions = torch.linalg.eigh(torch.cov(found.T))
        known = (linear @ directions.flip(1)).T[: module.hidden]  # reduced-rank regression
        module.up.weight[: len(known)].copy_(known)
        _standardise(module.up, [_kept(linear_as(module.up, x), rows) for x, rows in inputs])
        taps = module.conv.weight.flatten(1)
        own = taps.shape[1] - 1 if module.causal else taps.shape[1] // 2
        taps.mul_(TAPS / taps.square().sum(1).mean().sqrt()).select(1, own).add_(1.0)
        module.conv.weight.copy_(taps.view_as(module.conv.weight))
        _standardise(module.conv, [_kept(module._mixed(x, rows), rows) for x, rows in inputs])
        features = [_kept(module._features(x, rows), rows).double() for x, rows in inputs]
        solved = 2 * _ridge(features, wanted)  # the gate halves
        module.down.weight.copy_(solved[:-1].T)
        module.down.bias.copy_(solved[-1])
        module.eca.weight.zero_()
    left = 0.0
    for (z, _, keep), (_, rows), y in zip(blocks, inputs, wanted, strict=True):
        got = _kept(module(z, keep)[:, module.prefix :], rows)
        left += float((got.double() - y).square().sum())
    return left / max(sum(float(y.square().sum()) for y in wanted), 1e-30)


def _ridge(inputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """The linear map ``[D + 1, E]``, its last row the offset, from rows to ``wanted`` rows."""
    gram = right = inputs[0].new_zeros(())
    for x, y in zip(inputs, wanted, strict=True):
        x = torch.cat([x, torch.ones_like(x[:, :1])], -1)
        gram, right = gram + x.T @ x, right + x.T @ y
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    solved: Tensor = torch.linalg.solve(gram, right)
    return solved


def rows_kept(keep: Tensor | None, prefix: int = 0) -> Tensor | None:
    """Rows ``[B|1, N, 1]`` after the prefix that a mask ``[B|1, 1, 1, T]`` keeps."""
    return None if keep is None else keep[:, 0, 0, prefix:, None]


def _kept(x: Tensor, rows: Tensor | None) -> Tensor:
    """Rows ``[n, D]`` of ``x [B, N, D]`` that are no padding."""
    return x.flatten(0, 1) if rows is None else x[rows[..., 0].expand(len(x), -1)]


def _standardise(layer: nn.Module, results: Sequence[Tensor]) -> None:
    """What a layer gives has deviation 1 per channel (as in LSUV, 1511.06422), mean LINEAR."""
    found = torch.cat([x.float() for x in results])
    deviation = found.std(0, correction=0)
    scale = 1.0 / deviation.clamp_min(max(1e-2 * float(deviation.max()), 1e-6))
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    weight.mul_(scale.view(-1, *(1,) * (weight.dim() - 1)))
    bias.sub_(found.mean(0)).mul_(scale).add_(LINEAR)
