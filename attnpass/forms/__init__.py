"""The attention forms as modules, usable without any compiler."""

from __future__ import annotations

from attnpass.forms.catalogue import OPTIONS, build, check_names, check_options
from attnpass.forms.hydra import Hydra
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
    "check_names",
    "check_options",
    "linear_as",
]
