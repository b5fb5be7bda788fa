"""Padding, read off boolean masks: which keys, rows and tokens carry data.

A mask says of every query which keys it may see. It is one of padding where it says the same for
all queries and heads; then what it says of the keys of self-attention holds for the queries too.
Shapes: B batch, T tokens, S keys, N tokens after a prefix, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def key_padding(mask: Tensor | None) -> Tensor | None:
    """The mask where it is one of padding, ``[B|1, 1, 1, S]``; else None."""
    same_for_all = mask is not None and mask.dim() == 4 and mask.shape[1:3] == (1, 1)
    return mask if same_for_all else None


def rows_kept(keep: Tensor | None, prefix: int = 0) -> Tensor | None:
    """Rows ``[B|1, N, 1]`` after the prefix that a mask ``[B|1, 1, 1, T]`` keeps."""
    return None if keep is None else keep[:, 0, 0, prefix:, None]


def select_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """The ``rows [B|1, N, 1]`` of ``x [B, N, D]`` as ``[n, D]``; all of them without ``rows``."""
    return x.flatten(0, 1) if rows is None else x[rows[..., 0].expand(len(x), -1)]


def padding_masks(masks: Sequence[Tensor]) -> list[Tensor]:
    """What boolean masks of self-attention say of padding, ``[B|1, 1, 1, S]`` each.

    Keys that no query sees are padding too (a causal mask with padding in it).
    """
    masks = [m for m in masks if m.dtype == torch.bool and m.dim() == 4]
    alone = [m for m in masks if key_padding(m) is not None]
    square = [m for m in masks if m.shape[-1] == m.shape[-2] > 1]
    seen = (m.any(-2, keepdim=True).any(1, keepdim=True) for m in square)
    return alone + [m for m in seen if not bool(m.all())]


def token_rows(masks: Sequence[Tensor], x: Tensor) -> Tensor | None:
    """Tokens of ``x [B, T, D]``, ``[T, B, D]`` or ``[B * T, D]`` that are no padding.

    ``[B, T, 1]``, ``[T, B, 1]`` or ``[B * T, 1]``; None where no mask fits ``x`` or where two
    masks differ. Where both orders fit, the batch is first.
    """
    masks = [m for m in masks if m.dtype == torch.bool]
    if x.dim() == 2:
        flat = [m for m in masks if key_padding(m) is not None and len(m) > 1]
        flat = [m for m in flat if m.numel() == len(x)]
        alike = bool(flat) and all(torch.equal(m, flat[0]) for m in flat[1:])
        return flat[0].reshape(-1, 1) if alike else None
    if x.dim() != 3:
        return None
    for batch_axis, (b, t) in enumerate((x.shape[:2], x.shape[1::-1])):
        shapes = ((1, 1, 1, t), (b, 1, 1, t))
        fitting = [m for m in masks if m.shape in shapes]
        if fitting:
            if any(not torch.equal(m, fitting[0]) for m in fitting[1:]):
                return None
            rows = fitting[0][:, 0, 0, :, None].expand(b, -1, 1)
            return rows.transpose(0, 1) if batch_axis else rows
    return None
