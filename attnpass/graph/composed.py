"""Operators that are other operators in a row, and which tracing keeps as one: they are opened.

``linalg.matmul``, ``multi_dot`` and ``vecdot`` run exactly what torch runs for them. Cosine
similarity measures lengths before it pairs the rows, where torch does so afterwards: the same
numbers, and a product of two tensors. Autocast has rules of its own for a whole operator: there
what would become a sum stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnpass.torch_internals import statically_known_true

aten = torch.ops.aten


def _cosine(a: Tensor, b: Tensor, dim: int = 1, eps: float = 1e-8) -> Any:
    """``cosine_similarity`` of two tensors of one rank and dtype, as long along ``dim``."""
    plain = a.dtype == b.dtype and a.is_floating_point() and -a.dim() <= dim < a.dim() == b.dim()
    plain = plain and statically_known_true(a.shape[dim] == b.shape[dim])
    plain = plain and not torch.is_autocast_enabled(a.device.type)
    return (_unit(a, dim, eps) * _unit(b, dim, eps)).sum(dim) if plain else NotImplemented


def _vecdot(a: Tensor, b: Tensor, dim: int = -1) -> Any:
    """``linalg.vecdot``."""
    if torch.is_autocast_enabled(a.device.type):
        return NotImplemented
    return aten.linalg_vecdot.default.decompose(a, b, dim=dim)


def _unit(x: Tensor, dim: int, eps: float) -> Tensor:
    length = torch.linalg.vector_norm(x, 2, dim, True)
    # a shorter one counts as eps; gradients pass as if it did not
    out: Tensor = x / (length + torch.where(length < eps, eps - length, 0).detach())
    return out


COMPOSED: dict[Any, Callable[..., Any]] = {
    aten.cosine_similarity.default: _cosine,
    aten.linalg_matmul.default: aten.linalg_matmul.default.decompose,
    aten.linalg_multi_dot.default: aten.linalg_multi_dot.default.decompose,
    aten.linalg_vecdot.default: _vecdot,
    aten.chain_matmul.default: aten.chain_matmul.default.decompose,
}
"""Operator -> what is traced in its place; ``NotImplemented`` leaves it as it is."""
