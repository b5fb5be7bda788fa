"""The files that a piece of work reads, as Python's audit events tell, and what they hold.

Files that are read when a task is loaded or judged are no part of its objects or sources: a stored
measurement names them with their digests, and is a miss where one differs.

Not covered: files that C++ code or another process opens, and those of which only the existence is
asked; variables and sockets.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from attnpass.fingerprint.origin import is_installed
from attnpass.fingerprint.sources import PACKAGE

LARGE = 1 << 28
"""Bytes from which on a file is known by its size and the time of its last change."""

_reading: dict[int, tuple[set[str], set[str]]] = {}
"""Files read and written, per open ``files_read``."""

_numbers = itertools.count()


@contextmanager
def files_read() -> Iterator[set[str]]:
    """Inside, the paths of files of the user that this process opens to read are collected.

    A file that is written first is a product of the work, and does not count.
    """
    _listen()
    read, written = set[str](), set[str]()
    number = next(_numbers)
    _reading[number] = (read, written)
    try:
        yield read
    finally:
        del _reading[number]


@cache
def _listen() -> None:
    """Hear of every opened file from now on: such a hook cannot be removed."""

    def heard(event: str, arguments: tuple[object, ...]) -> None:
        if _reading and event in ("open", "sqlite3.connect", "ctypes.dlopen"):
            # an error here would be the opener's; a folder that is gone has no absolute path
            with suppress(Exception):
                _opened(arguments[0], arguments[2] if event == "open" else 0)

    sys.addaudithook(heard)


def _opened(path: object, flags: object) -> None:
    if not isinstance(path, (str, bytes)) or not path:
        return
    name = os.path.abspath(os.fsdecode(path))
    for read, written in list(_reading.values()):
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_TRUNC | os.O_APPEND):
            written.add(name)
        elif name not in written:
            read.add(name)


def digests_of(paths: Iterable[str]) -> dict[str, str]:
    """Digest of each file of the user, by its path; compiled modules count as their sources.

    Devices and installed files are left out. A file that is not there has the digest ``""``: it is
    a temporary one, which stays away, or one that was looked for and may appear.
    """
    sources = {_source(path) for path in paths}
    return {path: _digest(path) for path in sorted(sources) if _counts(path)}


def changed_file(known: Mapping[str, str]) -> str:
    """The first file whose digest is another now, ``""`` where all are the same."""
    return next((path for path, digest in known.items() if _digest(path) != digest), "")


def _source(path: str) -> str:
    with suppress(ValueError):
        return importlib.util.source_from_cache(path) if path.endswith(".pyc") else path
    return path


def _counts(path: str) -> bool:
    caches = (os.path.join(tempfile.gettempdir(), "torchinductor"), "/proc/", "/sys/", "/dev/")
    return not (path.startswith(caches) or is_installed(path) or _is_ours(path))


def _is_ours(path: str) -> bool:
    package = PACKAGE.resolve()
    folders = (package, *((package / x).resolve() for x in ("kernels", "tuner")))
    return any(Path(path).resolve().is_relative_to(folder) for folder in folders)


def _digest(path: str) -> str:
    """Digest of a file's bytes, ``""`` where it is no readable regular file."""
    file = Path(path)
    try:
        if not file.is_file():
            return ""
        facts = file.stat()
        if facts.st_size >= LARGE:
            return f"{facts.st_size} bytes of {facts.st_mtime_ns}"
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    except OSError:
        return ""
