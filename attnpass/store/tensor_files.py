"""Tensors of plans in files beside the database, each named by the digest of its content.

``attnpass.db`` has the folder ``attnpass.db.tensors``. A file holds the tensors of one site, as
safetensors: plans that have a piece in common share its file, and no file is ever changed. A file
is written whole before the row that names it. A row names no file that is missing: both the row
and the removal of files that no row names are written inside a transaction of the database.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from attnpass.errors import PlanError, StoreError
from attnpass.files import reason, replace_file
from attnpass.fingerprint import content_digest
from attnpass.plan import read_tensors

SMALL = 2**16
"""Bytes of a site's tensors, or of all those of small sites together, that stay in the row."""

SUFFIX = ".safetensors"

GRACE = 3600.0
"""Seconds for which a file that no row names is kept: its row may be about to be written."""


def size(held: Mapping[str, Tensor]) -> int:
    """The bytes of tensors."""
    return sum(value.nbytes for value in held.values())


def digest(held: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors and their names, 64 hex digits: the name of their file."""
    names = sorted(held)
    text = json.dumps([names, content_digest(held[name] for name in names)])
    return hashlib.sha256(text.encode()).hexdigest()


class TensorFiles:
    """The folder of a database.

    Attributes:
        folder: made when the first file is written.
    """

    def __init__(self, database: Path) -> None:
        self.folder = database.with_name(f"{database.name}.tensors")
        self._whole: set[str] = set()

    def path(self, name: str) -> Path:
        """The file of a digest."""
        return self.folder / f"{name}{SUFFIX}"

    def save(self, held: Mapping[str, Tensor]) -> str:
        """Write tensors to their file, unless it is there and whole; returns their digest.

        Raises:
            StoreError: the file cannot be written; none is left behind.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        name = digest(held)
        path = self.path(name)
        try:
            if not self._keep(name):
                self.folder.mkdir(parents=True, exist_ok=True)
                replace_file(path, lambda half: save_file(dict(held), half), durable=True)
        except (OSError, SafetensorError) as error:
            raise StoreError(
                f"expected to write {size(held):,} bytes of a plan's tensors to {path}, got"
                f" {reason(error)}; free some space there (attnpass gc), or choose another"
                " database with --db FILE or $ATTNPASS_DB"
            ) from error
        self._whole.add(name)
        return name

    def _keep(self, name: str) -> bool:
        """Whether the file is there and whole; it is then as new, and not removed for a while."""
        path = self.path(name)
        if not path.is_file():
            return False
        try:
            if name not in self._whole:
                self.load(name)
            os.utime(path)
        except (PlanError, FileNotFoundError):
            return False
        return True

    def load(self, name: str) -> dict[str, Tensor]:
        """The tensors of a digest, mapped from their file.

        Raises:
            PlanError: the file is missing, cannot be read, or holds others.
        """
        path = self.path(name)
        held = read_tensors(path)
        if digest(held) != name:
            raise PlanError(f"expected the tensors that {path} is named after in it, got others")
        return held

    def missing(self, names: Collection[str]) -> list[str]:
        """The digests that have no file."""
        return [name for name in names if not self.path(name).is_file()]

    def unnamed(self, named: Collection[str], age: float) -> Iterator[Path]:
        """Files that no row names, of at least so many seconds, and halves that nobody writes."""
        paths = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        for path in paths:
            if (path.suffix == SUFFIX and path.stem in named) or not path.is_file():
                continue
            least = age if path.suffix == SUFFIX else GRACE
            if SUFFIX in path.name and path.stat().st_mtime < time.time() - least:
                yield path
