"""The items of batches by their content, to tell whether two sets have one in common."""

from __future__ import annotations

from torch import Tensor

from attnpass.batch import Batch, items
from attnpass.fingerprint.values import content_digest
from attnpass.torch_internals import pytree


def item_digests(batch: Batch) -> list[str]:
    """One digest for each item of a batch; none where it has no tensor.

    An item is its part of every tensor that has an axis of items first. Masks, which hold 0 and 1
    alone, do not count where there is more, nor does how far a row of numbers is padded.
    """
    count = items(batch)
    parts = [
        x
        for x in pytree.tree_leaves(batch)
        if isinstance(x, Tensor) and x.dim() and x.shape[0] == count
    ]
    telling = [x for x in parts if not _is_mask(x)] or parts
    return [content_digest(_unpadded(x[i]) for x in telling) for i in range(count)]


def _is_mask(x: Tensor) -> bool:
    return bool(((x == 0) | (x == 1)).all())


def _unpadded(x: Tensor) -> Tensor:
    """A row of integers without the repeats of its last one at its end."""
    if x.dim() != 1 or x.is_floating_point() or len(x) < 2:
        return x
    others = (x != x[-1]).nonzero()
    return x[: int(others[-1]) + 2] if len(others) else x[:1]
