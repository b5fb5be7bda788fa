"""Plan: which form runs at which site, with its parameters; JSON and safetensors on disk.

Loading never unpickles. A plan fits a site by name and structure; what does not fit stays softmax.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def replaced(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file beside ``path``, then put it in its place."""
    half = path.with_name(f"{path.name}.{os.getpid()}")
    write(half)
    half.replace(path)
