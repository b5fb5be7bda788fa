"""A batch: the arguments of one call of a model, and how a model is called with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from attnpass.errors import OptionError
from attnpass.torch_internals import pytree

Batch = tuple[Any, ...] | dict[str, Any]
"""The arguments of one call of a model: positional, or by name."""

T = TypeVar("T")


def call(run: Callable[..., T], batch: Batch) -> T:
    """The result of ``run`` with the arguments of a batch."""
    return run(**batch) if isinstance(batch, dict) else run(*batch)


def items(batch: Batch) -> int:
    """How many items a batch has: the length of the first tensor's first axis, 0 without one."""
    return next((x.shape[0] for x in pytree.tree_leaves(batch) if _is_batched(x)), 0)


def fewer(batch: Batch, most: int) -> Batch:
    """The first items of a batch; tensors whose first axis is another than theirs stay whole."""
    return next(parts(batch, most)) if most > 0 else batch


def parts(batch: Batch, most: int) -> Iterator[Batch]:
    """A batch in parts of at most ``most`` > 0 items, in order.

    Tensors whose first axis is another than the items' are in every part.
    """
    count = items(batch)
    if count <= most:
        yield batch
        return
    for start in range(0, count, most):

        def cut(x: Any, start: int = start) -> Any:
            own = _is_batched(x) and x.shape[0] == count
            return x[start : start + most] if own else x

        yield pytree.tree_map(cut, batch)


def _is_batched(x: object) -> bool:
    return isinstance(x, Tensor) and x.layout is torch.strided and not x.is_nested and x.dim() > 0


def check_batches(inputs: object, verb: str, *, empty: bool = False) -> None:
    """Check that ``inputs`` is a sequence of batches, of at least one unless ``empty``.

    ``verb`` says in the message for which purpose the batches are taken, e.g. ``calibrate``.

    Raises:
        OptionError: not a sequence, no batch, or a first element that is no batch.
    """
    if not (hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__")):
        raise OptionError(
            f"expected a sequence of batches to {verb} on, got {type(inputs).__name__};"
            " list(...) makes one"
        )
    if not len(inputs):
        if empty:
            return
        raise OptionError(f"expected at least one batch of inputs to {verb} on, got none")
    if not isinstance(inputs[0], (tuple, dict)):
        raise OptionError(
            f"expected batches to {verb} on that are tuples of a call's positional arguments,"
            f" or a dict of its named ones, got {type(inputs[0]).__name__};"
            " one argument x is (x,)"
        )
