"""The folder of plan files that the worker of one process reads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path


@contextmanager
def plans_folder(db: Path) -> Iterator[Path]:
    """A folder beside the database for plans that the worker reads, gone afterwards.

    Folders of processes that were killed are removed first: their names hold the process id.
    """
    for old in db.parent.glob(f"{escape(db.name)}.*.plans"):
        number = old.name.split(".")[-2]
        if number.isdigit() and not _runs(int(number)):
            shutil.rmtree(old, ignore_errors=True)
    folder = db.with_name(f"{db.name}.{os.getpid()}.plans")
    folder.mkdir(exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _runs(process: int) -> bool:
    """Whether a process is alive."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
