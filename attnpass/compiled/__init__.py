"""One graph on its way through ``torch.compile``: which plan, which layers, which variant.

Imports ``matching``, ``plan``, ``rewrite`` and, for tiles and pins, ``store``; never ``capture``
or ``recover``, which run graphs without a compiler.
"""

from __future__ import annotations

from attnpass.compiled.graph import GraphCompiler
from attnpass.compiled.inner import Compiled, compile_inner
from attnpass.compiled.options import Options

__all__ = ["Compiled", "GraphCompiler", "Options", "compile_inner"]
