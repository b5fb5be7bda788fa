"""The attention forms as modules, usable without any compiler.

All but two take ``forward(q [B,H,T,d], k [B,G,S,d], v [B,G,S,dv], bias, keep)`` and return
``[B,H,T,dv]`` (B batch, H query heads, G key/value heads, T queries, S keys, d and dv head dims).
``Weights`` and ``SoftmaxWeights`` map logits ``[B,H,T,S]`` to weights; ``SkipAt`` maps the output
``[B,T,D]`` of one block to that of the next. The forms know the kernels that compute them, and
``site`` for the sizes of an attention; they know no graph and no plan.
"""

from __future__ import annotations

from attnpass.forms.catalogue import build, default_length
from attnpass.forms.hydra import Hydra
from attnpass.forms.options import OPTIONS, check_options
from attnpass.forms.pointwise import Pointwise, Weights
from attnpass.forms.skipat import SkipAt, linear_as
from attnpass.forms.softmax import Softmax, SoftmaxWeights

__all__ = [
    "Hydra",
    "OPTIONS",
    "Pointwise",
    "SkipAt",
    "Softmax",
    "SoftmaxWeights",
    "Weights",
    "build",
    "check_options",
    "default_length",
    "linear_as",
]
