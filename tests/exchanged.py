"""Another normaliser in the place of every softmax of a model that runs eagerly: a reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

FILL = -1e4

SOFTMAX = (torch.softmax, Tensor.softmax, F.softmax, torch.special.softmax)


class Exchanged(TorchFunctionMode):
    """Inside, softmax computes ``h`` (``sigmoid`` or ``relu``) of the visible logits.

    A row of n logits above ``FILL`` becomes ``sigmoid(s - log n)`` or ``relu(s) / n``.
    """

    def __init__(self, h: str) -> None:
        super().__init__()
        self.h = h

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func not in SOFTMAX:
            return func(*args, **kwargs)
        s = args[0]
        dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
        keep = s > FILL
        n = keep.sum(dim, keepdim=True).clamp_min(1).to(s.dtype)
        s = s.masked_fill(~keep, 0.0)
        p = torch.sigmoid(s - n.log()) if self.h == "sigmoid" else torch.relu(s) / n
        return p.masked_fill(~keep, 0.0)


def exchanged(model, h: str, *args):
    """What the model computes with another normaliser."""
    with Exchanged(h):
        return model(*args)
