"""Files that are replaced whole, and files of others that are read within limits.

A reader of a replaced file sees the old content or the new, never a part.
"""

from __future__ import annotations

import gc
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def replace_file(path: Path, write: Callable[[Path], object], *, durable: bool = False) -> None:
    """Let ``write`` make a file beside ``path``, then rename it to ``path``.

    The name of the file beside holds the process id, so that two processes do not share it. Where
    ``write`` raises, ``path`` is unchanged and the file beside is gone. The file has the mode of
    any new file, whatever ``write`` gives it. ``durable``: the content and the name are on the
    disk when the call returns.

    Raises:
        OSError: ``path`` is there and no regular file: a device must not be replaced.
    """
    if path.exists() and not path.is_file():
        raise OSError("not a regular file")
    half = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        half.touch()
        mode = half.stat().st_mode
        write(half)
        half.chmod(mode)
        if durable:
            _sync(half)
        half.replace(path)
        if durable:
            _sync(path.parent)
    except BaseException:
        half.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reason(error: Exception) -> str:
    """Why a file could not be read or written, without its name."""
    return getattr(error, "strerror", None) or str(error)


@contextmanager
def opened(path: Path, limit: int) -> Iterator[int]:
    """The descriptor of a regular file of at most ``limit`` bytes, open for reading.

    Raises:
        OSError: no such file, not a regular one (a pipe would wait, a device never end), or a
            larger one.
    """
    # without O_NONBLOCK, opening a pipe waits for its writer
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError("not a regular file")
        if found.st_size > limit:
            raise OSError(f"{found.st_size:,} bytes, more than {limit:,}")
        yield descriptor
    finally:
        os.close(descriptor)


def read_file(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
        OSError: as ``opened``.
    """
    with opened(path, limit) as descriptor, open(descriptor, "rb", closefd=False) as file:
        return file.read(limit)


@contextmanager
def uncollected() -> Iterator[None]:
    """Inside, nothing is searched for garbage: what a large file holds is made once and kept.

    Python would walk all objects of the process, those of torch too, each time they grow by a
    quarter. Also a decorator.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def parse_json(text: str | bytes) -> Any:
    """The value of JSON that has each key once, and no number that is not finite.

    Raises:
        ValueError: anything else, or JSON that is nested too deeply.
    """
    try:
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=_refuse, parse_float=_finite
        )
    except RecursionError:
        raise ValueError("values nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} twice")
    return found


def _refuse(text: str) -> float:
    raise ValueError(f"the number {text}")


def _finite(text: str) -> float:
    value = float(text)
    return value if abs(value) < float("inf") else _refuse(text[:20])
