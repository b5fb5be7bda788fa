"""Digests of values: tensors, arrays, plain values and trees of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from attnpass.torch_internals import OpOverload, pytree

PIECE = 2**20
"""Numbers of a tensor that are read at once."""


def name(x: object) -> str:
    """The name of an operator, a function or a class, or of an object's class."""
    if isinstance(x, (str, OpOverload)):
        return str(x)
    return str(getattr(x, "__qualname__", type(x).__qualname__))


def content(x: object) -> str:
    """All of a tensor, an array or a plain value, as text.

    The ``repr`` of a large array omits most of its values.
    """
    if isinstance(x, Tensor):
        return digest_weights([x])
    return f"{getattr(x, 'dtype', '')} {x.tolist()}" if hasattr(x, "tolist") else repr(x)


def digest(tree: object) -> str:
    """Digest of the tensors (dtype, shape, bytes) and other leaves of a tree, 16 hex digits."""
    h = hashlib.sha256()
    for leaf in pytree.tree_leaves(tree):
        h.update(content(leaf).encode())
    return h.hexdigest()[:16]


def digest_weights(parameters: Iterable[Tensor]) -> str:
    """Digest of tensors (dtype, shape, bytes), 16 hex digits."""
    return content_digest(parameters)[:16]


def content_digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of tensors (dtype, shape, bytes), 64 hex digits.

    A tensor on the CPU is read in pieces, no whole copy of it is made.
    """
    h = hashlib.sha256()
    for tensor in tensors:
        value = tensor.detach().cpu().contiguous()
        h.update(f"{value.dtype}{tuple(value.shape)}".encode())
        for piece in value.reshape(-1).split(PIECE):
            # a copy: numpy makes the storage it reads one that sharding can no longer free
            h.update(piece.clone().view(torch.uint8).numpy().data)
    return h.hexdigest()
