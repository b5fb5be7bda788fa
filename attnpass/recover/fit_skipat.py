"""The parameters of SkipAt's Phi, fitted to the block outputs of the original model.

Phi starts as the nearest linear map of rank rD from the previous block's output to the block's
own: GELU is almost linear where its input is ``LINEAR_MEAN`` deviations above 0. Then its last
linear layer is solved for by ridge regression; the channel gate stays at its constant 1/2.
Shapes: B batch, N tokens after the prefix, D width, rD hidden width, n rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attnpass.forms import SkipAt, linear_as
from attnpass.recover.padding import rows_kept, select_rows
from attnpass.recover.samples import BlockSample

RIDGE = 3e-2
"""Ridge of the regressions, relative to the inputs' variance."""

LINEAR_MEAN = 2.0
"""Target mean, in standard deviations, of the inputs of SkipAt's GELUs. GELU is almost linear
there."""

RANDOM_TAPS = 0.3
"""Norm of the random part of the convolution, beside the tap 1 of a row itself."""

Inputs = Sequence[tuple[Tensor, Tensor | None]]
"""Previous outputs ``[B, N, D]`` without the prefix, and which of their rows are no padding."""


def fit_skipat(form: SkipAt, blocks: Sequence[BlockSample], learns: bool) -> float:
    """Fit Phi, unless it is frozen (``learns`` is false); returns the relative error left."""
    wide = torch.promote_types(blocks[0][0].dtype, torch.float32)
    inputs = [
        (previous[:, form.prefix :].to(wide), rows_kept(keep, form.prefix))
        for previous, _, keep in blocks
    ]
    targets = [
        select_rows(output[:, form.prefix :], rows).double()
        for (_, output, _), (_, rows) in zip(blocks, inputs, strict=True)
    ]
    if learns:
        _start_linear(form, inputs, targets)
        _solve_last_layer(form, inputs, targets)
    error = 0.0
    for (previous, _, keep), (_, rows), target in zip(blocks, inputs, targets, strict=True):
        got = select_rows(form(previous, keep)[:, form.prefix :], rows)
        error += float((got.double() - target).square().sum())
    return error / max(sum(float(target.square().sum()) for target in targets), 1e-30)


def _start_linear(form: SkipAt, inputs: Inputs, targets: Sequence[Tensor]) -> None:
    """First linear layer: the main directions of the best linear map. Convolution: near a copy."""
    linear = _ridge([select_rows(x, rows).double() for x, rows in inputs], targets)[:-1]
    fitted = torch.cat([select_rows(x, rows) for x, rows in inputs]).double() @ linear
    _, directions = torch.linalg.eigh(torch.cov(fitted.T))
    main = (linear @ directions.flip(1)).T[: form.hidden]  # reduced-rank regression
    form.up.weight[: len(main)].copy_(main)
    _standardise(form.up, [select_rows(linear_as(form.up, x), rows) for x, rows in inputs])
    taps = form.conv.weight.flatten(1)
    own = taps.shape[1] - 1 if form.causal else taps.shape[1] // 2
    taps.mul_(RANDOM_TAPS / taps.square().sum(1).mean().sqrt()).select(1, own).add_(1.0)
    form.conv.weight.copy_(taps.view_as(form.conv.weight))
    _standardise(form.conv, [select_rows(form.convolved(x, rows), rows) for x, rows in inputs])


def _solve_last_layer(form: SkipAt, inputs: Inputs, targets: Sequence[Tensor]) -> None:
    """Last linear layer by regression on its own inputs; a channel gate of 0 passes 1/2."""
    features = [select_rows(form.features(x, rows), rows).double() for x, rows in inputs]
    solved = 2 * _ridge(features, targets)  # makes up for the gate
    form.down.weight.copy_(solved[:-1].T)
    form.down.bias.copy_(solved[-1])
    form.eca.weight.zero_()


def _ridge(inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """The linear map ``[D + 1, E]``, its last row the offset, from rows to ``targets`` rows."""
    gram = right = inputs[0].new_zeros(())
    for x, y in zip(inputs, targets, strict=True):
        x = torch.cat([x, torch.ones_like(x[:, :1])], -1)
        gram, right = gram + x.T @ x, right + x.T @ y
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    solved: Tensor = torch.linalg.solve(gram, right)
    return solved


def _standardise(layer: nn.Module, outputs: Sequence[Tensor]) -> None:
    """Scale a layer so that its outputs have, per channel, deviation 1 and mean ``LINEAR_MEAN``.

    As in LSUV (1511.06422).
    """
    rows = torch.cat([x.float() for x in outputs])
    deviation = rows.std(0, correction=0)
    scale = 1.0 / deviation.clamp_min(max(1e-2 * float(deviation.max()), 1e-6))
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    weight.mul_(scale.view(-1, *(1,) * (weight.dim() - 1)))
    bias.sub_(rows.mean(0)).mul_(scale).add_(LINEAR_MEAN)
