"""A weight delta of a plan: the graph computes with W + delta, the model's own W is unchanged.

Soundness (versions of weights): a call gets the sum of the weight and the delta as they are at
that call. Without gradients the sum of an earlier call is used, on conditions:

1. No gradient is wanted of the weight or of the delta.
2. Neither of them is a tensor of inference mode, whose writes are not counted.
3. The weight is the same tensor, not another one at its address.
4. Address and version of the weight and of the delta's parameters are those of that call.

Not covered: writes that autograd does not count (``.data``, fused optimisers that write without a
new version, storage swapped underneath).
"""

from __future__ import annotations

import math
import weakref

import torch
from torch import Tensor, nn

from attnpass.torch_internals import version


class Delta(nn.Module):
    """``weight -> weight + delta``, the delta full or of low rank ``left @ right``.

    With gradients the sum is computed at every call, so that both the weight and the delta are
    trained. Without gradients the sum is kept in one buffer until the weight or the delta changes.
    A write that autograd does not count (``weight.data.copy_``) leaves the buffer as it was.

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
        self._key: tuple[object, ...] = ()
        self._weight: weakref.ref[Tensor] | None = None
        self._sum: Tensor | None = None

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
        if self.full is not None:
            change: Tensor = self.full
        else:
            assert self.left is not None and self.right is not None
            change = (self.left @ self.right).view(weight.shape)
        wide = torch.promote_types(weight.dtype, change.dtype)
        return (weight.to(wide) + change.to(wide)).to(weight.dtype)

    def __getstate__(self) -> dict[str, object]:
        """The state without the buffer: its weak reference cannot be pickled."""
        return {**self.__dict__, "_key": (), "_weight": None, "_sum": None}

    def __deepcopy__(self, memo: dict[int, object]) -> Delta:
        """A delta with the same numbers and an empty buffer."""
        parts = {k: p.detach().clone() for k, p in self.named_parameters()}
        other = Delta.of(parts)
        for name, p in self.named_parameters():
            other.get_parameter(name).requires_grad_(p.requires_grad)
        return other

    def forward(self, weight: Tensor) -> Tensor:
        """``weight + delta``, from the buffer where neither changed and no gradient is wanted."""
        own = list(self.parameters())
        if torch.is_grad_enabled() and any(x.requires_grad for x in (weight, *own)):
            return self.add(weight)
        if any(x.is_inference() for x in (weight, *own)):
            return self.add(weight)
        # a weak reference, not an id: a later weight may get the id of a freed one
        same = self._weight is not None and self._weight() is weight
        key = tuple((x.data_ptr(), version(x)) for x in (weight, *own))
        if not same or key != self._key or self._sum is None:
            with torch.inference_mode(False), torch.no_grad():
                self._sum = _into(self._sum, self.add(weight))
            self._key, self._weight = key, weakref.ref(weight)
        return self._sum


def _matrix(shape: torch.Size) -> tuple[int, int]:
    """Rows and columns of a weight whose axes after the first are taken as one."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def _into(buffer: Tensor | None, value: Tensor) -> Tensor:
    """``value``, in a buffer of its kind if there is one: compiled code may hold its address."""

    def kind(x: Tensor) -> tuple[object, ...]:
        return x.shape, x.dtype, x.device

    if buffer is None or kind(buffer) != kind(value):
        return value
    return buffer.copy_(value)
