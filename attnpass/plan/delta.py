"""A weight delta of a plan: the graph computes with W + delta, the model's own W is unchanged.

The sum is computed at every call. Nothing that a writer could change behind autograd's back
(``.data``, fused optimisers, exchanged storage) is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Delta(nn.Module):
    """``weight -> weight + delta``, the delta full or of low rank ``left @ right``.

    With gradients both the weight and the delta are trained.

    Args:
        shape: the weight's shape.
        rank: the delta's rank. ``None`` makes a full delta, and so does a rank whose factors would
            hold as many numbers as the weight.
        seed: seed of the random ``right``. ``left`` starts at 0, hence the delta does.
        device: the device of the delta's parameters.
    """

    full: nn.Parameter | None
    left: nn.Parameter | None
    right: nn.Parameter | None

    def __init__(
        self,
        shape: torch.Size,
        rank: int | None = None,
        *,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        rows, columns = _matrix(shape)
        self.full = self.left = self.right = None
        if rank is None or rank * (rows + columns) >= rows * columns:
            self.full = nn.Parameter(torch.zeros(shape, device=device))
        else:
            random = torch.randn(rank, columns, generator=torch.Generator().manual_seed(seed))
            self.left = nn.Parameter(torch.zeros(rows, rank, device=device))
            self.right = nn.Parameter((random / math.sqrt(columns)).to(device))

    @classmethod
    def of(cls, values: dict[str, Tensor]) -> Delta:
        """The delta of stored values, ``full`` or ``left`` and ``right``.

        Raises:
            ValueError: other names, or ``left`` and ``right`` of different ranks.
        """
        kinds = {k: v.dim() for k, v in values.items()}
        if set(kinds) != {"full"} and kinds != {"left": 2, "right": 2}:
            raise ValueError(f"expected full, or left and right, got {', '.join(sorted(kinds))}")
        if "left" in kinds and values["left"].shape[1] != values["right"].shape[0]:
            raise ValueError(
                f"expected left and right of one rank, got {tuple(values['left'].shape)}"
                f" and {tuple(values['right'].shape)}"
            )
        out = cls(torch.Size([0]))
        out.full = None
        for name, value in values.items():
            setattr(out, name, nn.Parameter(value))
        return out

    def fits(self, weight: Tensor) -> bool:
        """Whether the delta has the shape of ``weight``."""
        if self.full is not None:
            return self.full.shape == weight.shape
        assert self.left is not None and self.right is not None
        return _matrix(weight.shape) == (self.left.shape[0], self.right.shape[1])

    def add(self, weight: Tensor) -> Tensor:
        """``weight + delta`` in the weight's dtype, computed in the wider of both."""
        return added(weight, dict(self.named_parameters()))

    def __deepcopy__(self, memo: dict[int, object]) -> Delta:
        """A delta with the same numbers, and parameters of its own."""
        parts = {k: p.detach().clone() for k, p in self.named_parameters()}
        other = Delta.of(parts)
        for name, p in self.named_parameters():
            other.get_parameter(name).requires_grad_(p.requires_grad)
        return other

    def forward(self, weight: Tensor) -> Tensor:
        """``weight + delta``, as ``add``."""
        return self.add(weight)


def added(weight: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    """``weight`` and a delta of parts (``full``, or ``left`` and ``right``), as ``Delta.add``."""
    change = parts.get("full")
    if change is None:
        change = (parts["left"] @ parts["right"]).view(weight.shape)
    wide = torch.promote_types(weight.dtype, change.dtype)
    return (weight.to(wide) + change.to(wide)).to(weight.dtype)


def _matrix(shape: torch.Size) -> tuple[int, int]:
    """Rows and columns of a weight whose axes after the first are taken as one."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))
