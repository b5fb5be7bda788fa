"""Files that are replaced whole: a reader sees the old content or the new, never a part."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file beside ``path``, then rename it to ``path``.

    The name of the file beside holds the process id, so that two processes do not share it. Where
    ``write`` raises, ``path`` is unchanged.
    """
    half = path.with_name(f"{path.name}.{os.getpid()}")
    write(half)
    half.replace(path)
