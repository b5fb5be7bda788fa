"""One graph on its way through torch.compile: which plan, which layers, which variant."""

from __future__ import annotations

from attnpass.compiled.dispatch import Compiled
from attnpass.compiled.graph import _Graph, _pins
from attnpass.compiled.options import Options

__all__ = ["Compiled", "Options", "_Graph", "_pins"]
