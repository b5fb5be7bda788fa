"""Rows of the files that people have: JSON lines, CSV, Parquet, text, folders of images.

A row is a dict by column. An image is a path in the column ``image``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from attnpass.errors import MissingDependencyError, TaskError

Row = dict[str, Any]

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
LEARNT, JUDGED = ("train", "training"), ("val", "valid", "validation", "test")
"""Names of the parts of a folder whose items are to learn from, and of those that judge."""


def read(data: str) -> tuple[list[Row], list[Row] | None]:
    """The rows to judge by, and those to learn from where the data has a part for them.

    Raises:
        TaskError: no such file, a kind of file that is not known, no rows, or a broken one.
        MissingDependencyError: a package that reads this kind of file is not installed.
    """
    path = Path(data)
    if not path.exists():
        raise TaskError(f"expected data at {path}, found none")
    if path.is_dir():
        judged, learnt = _folder(path)
    else:
        judged, learnt = list(_table(path)), None
    if not judged:
        raise TaskError(f"expected rows in {path}, found none")
    return judged, learnt


def _folder(path: Path) -> tuple[list[Row], list[Row] | None]:
    """A folder of images by class, or one that ``datasets`` saved; each whole or in parts."""
    saved = (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists()
    if saved:
        return _saved(path)
    parts = {x.name.lower(): x for x in sorted(path.iterdir()) if x.is_dir()}
    judged = next((parts[x] for x in JUDGED if x in parts), None)
    if judged is None:
        return list(_images(path)), None
    learnt = next((parts[x] for x in LEARNT if x in parts), None)
    return list(_images(judged)), None if learnt is None else list(_images(learnt))


def _images(path: Path) -> Iterator[Row]:
    """The images below a folder, whose own folders are their classes."""
    classes = [x for x in sorted(path.iterdir()) if x.is_dir()]
    if not classes:
        raise TaskError(f"expected {path} with one folder per class, found none")
    for folder in classes:
        for file in sorted(folder.rglob("*")):
            if file.suffix.lower() in IMAGES:
                yield {"image": str(file), "label": folder.name}


def _saved(path: Path) -> tuple[list[Row], list[Row] | None]:
    try:
        from datasets import DatasetDict, load_from_disk
    except ImportError as error:
        raise MissingDependencyError(
            f"{path} was saved by datasets, which is not installed; pip install 'attnpass[data]'"
        ) from error
    found = load_from_disk(str(path))
    if not isinstance(found, DatasetDict):
        return list(found), None
    judged = next((found[x] for x in JUDGED if x in found), None)
    if judged is None:
        judged = next(iter(found.values()))
    learnt = next((found[x] for x in LEARNT if x in found and found[x] is not judged), None)
    return list(judged), None if learnt is None else list(learnt)


def _table(path: Path) -> Iterator[Row]:
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".json": _json_lines,
        ".csv": _csv,
        ".tsv": _csv,
        ".parquet": _parquet,
        ".txt": _text,
        ".rst": _text,
        ".md": _text,
    }
    if path.suffix.lower() not in readers:
        raise TaskError(
            f"expected data that ends with {', '.join(readers)}, or a folder; got {path.name}"
        )
    try:
        for row in readers[path.suffix.lower()](path):
            yield _with_images(row, path)
    except UnicodeDecodeError as error:
        raise TaskError(f"expected UTF-8 in {path}, got {error}") from error
    except OSError as error:
        raise TaskError(f"expected to read {path}, got {error.strerror or error}") from error


def _with_images(row: Row, path: Path) -> Row:
    """The row, with an image's path relative to the table's folder made whole."""
    image = row.get("image")
    if isinstance(image, str) and not Path(image).is_absolute():
        return {**row, "image": str(path.parent / image)}
    return row


def _json_lines(path: Path) -> Iterator[Row]:
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise TaskError(f"expected JSON in {path}, got: {error}") from error
        yield from (_checked(row, path, i) for i, row in enumerate(rows, 1))
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield _checked(json.loads(line), path, number)
            except json.JSONDecodeError as error:
                raise TaskError(
                    f"expected JSON in line {number} of {path}, got: {error.msg}"
                ) from error


def _checked(row: object, path: Path, number: int) -> Row:
    if not isinstance(row, dict):
        raise TaskError(
            f"expected an object per row of {path}, got {type(row).__name__} in row {number}"
        )
    return row


def _csv(path: Path) -> Iterator[Row]:
    tabs = path.suffix.lower() == ".tsv"
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t" if tabs else ",")
        for number, row in enumerate(rows, 2):
            if None in row or None in row.values():
                raise TaskError(
                    f"expected {len(rows.fieldnames or [])} columns in row {number} of {path},"
                    " got another number"
                )
            yield row


def _parquet(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependencyError(
            f"{path} needs pyarrow, which is not installed; pip install 'attnpass[data]'"
        ) from error
    yield from parquet.read_table(path).to_pylist()


def _text(path: Path) -> Iterator[Row]:
    yield {"text": path.read_text(encoding="utf-8")}


def column(rows: Sequence[Row], asked: str, usual: Sequence[str], what: str) -> str:
    """The column asked for, else the first usual name that there is.

    Raises:
        TaskError: there is none.
    """
    there = list(rows[0])
    by_name = {str(x).lower(): x for x in there}
    names = [asked] if asked else list(usual)
    found = next((by_name[x.lower()] for x in names if x.lower() in by_name), None)
    if found is None:
        told = f"a column {asked}" if asked else f"a column of {', '.join(usual)}"
        raise TaskError(
            f"expected {told} for the {what}, got columns {', '.join(map(str, there))};"
            f" --{what}-column names it"
        )
    return str(found)
