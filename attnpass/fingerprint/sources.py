"""Digests of our own sources: a changed kernel or recovery step makes stored numbers a miss."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
"""The folder of the package ``attnpass``."""

SUFFIXES = (".py", ".cpp", ".h")
"""Endings of the files that decide a result."""

KERNELS = ("kernels", "forms")
"""Folders with the sources that decide the result and the speed of a form."""

RECOVERY = ("recover", "plan/delta.py", "capture/node_values.py", "rewrite")
"""Folders and files with the sources that decide the result of ``calibrate`` and ``distil``."""


@cache
def kernels_digest() -> str:
    """Digest of the sources of kernels and forms, 16 hex digits."""
    return sources_digest(PACKAGE, KERNELS)


@cache
def recovery_digest() -> str:
    """Digest of the sources that calibrate and distil, 16 hex digits."""
    return sources_digest(PACKAGE, RECOVERY)


def sources_digest(package: Path, places: tuple[str, ...]) -> str:
    """Digest of the Python and C++ sources in folders of ``package``, and of single files.

    Sub-folders count. A source counts with its path below ``package``.

    Raises:
        FileNotFoundError: a place holds no source. An empty place would never be a miss.
    """
    h, files = hashlib.sha256(), list[Path]()
    for place in places:
        path = package / place
        found = [path] if path.is_file() else [x for x in path.rglob("*") if x.suffix in SUFFIXES]
        if not found:
            raise FileNotFoundError(f"expected sources at {path}, found none")
        files += found
    for file in sorted(files):
        h.update(file.relative_to(package).as_posix().encode() + file.read_bytes())
    return h.hexdigest()[:16]
