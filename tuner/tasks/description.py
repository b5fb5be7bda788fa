"""The description of a task without code: a model, data, and how both are used.

A description is one string, so that a worker process can make the same task, and a part of every
cache key: ``hf:FOLDER?data=reviews.jsonl&batch=16``. A YAML file holds the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

from attnpass.errors import TaskError
from attnpass.text import shown

SOURCES = ("hf", "st", "timm", "torchvision")
"""Where a model is from: transformers, sentence-transformers, timm, torchvision."""

KINDS = (
    "text-classification",
    "image-classification",
    "token-classification",
    "embedding",
    "masked-lm",
    "causal-lm",
)
"""What a model does, and so how it is judged."""

DTYPES = ("float32", "bfloat16", "float16")
YAML = (".yaml", ".yml")
PATHS = ("data", "learn", "checkpoint")
"""Fields that name files."""


@dataclass(frozen=True)
class Description:
    """A task without code. An empty string, or 0, is what can be found out.

    Attributes:
        source: of ``SOURCES``. model: a folder or a name.
        data: a table (JSON lines, CSV, Parquet), a text file, a folder of images, or a folder
            that ``datasets`` saved.
        learn: the same, of items to calibrate and distil on; by default a part of ``data``.
        kind: of ``KINDS``. metric: of those of the kind.
        checkpoint: a file of weights, in place of the ones that are downloaded.
        text, label: columns of the table; two columns, separated by a comma, are a pair.
        batch: items of a call as served. length: tokens that texts are cut or padded to.
        items: at most so many are taken, in a fixed random order. dtype: of the weights.
        device: that the model is on.
    """

    source: str
    model: str
    data: str = ""
    learn: str = ""
    kind: str = ""
    metric: str = ""
    checkpoint: str = ""
    text: str = ""
    label: str = ""
    batch: int = 0
    length: int = 0
    items: int = 0
    dtype: str = ""
    device: str = ""

    def __post_init__(self) -> None:
        for name, known in (("kind", KINDS), ("dtype", DTYPES)):
            if getattr(self, name) and getattr(self, name) not in known:
                raise TaskError(
                    f"expected a task's {name} of {', '.join(known)};"
                    f" got {shown(getattr(self, name))}"
                )
        for name in ("batch", "length", "items"):
            if getattr(self, name) < 0:
                raise TaskError(f"expected a task's {name} > 0, got {getattr(self, name)}")
        if not self.model:
            raise TaskError(f"expected {self.source}: with a folder or a name behind it, got none")

    def __str__(self) -> str:
        """The description as one string, its keys in a fixed order."""
        rest = {k: v for k, v in self.as_dict().items() if k not in ("source", "model")}
        query = "&".join(f"{k}={quote(str(v), safe='/:,.')}" for k, v in rest.items())
        return f"{self.source}:{quote(self.model, safe='/:.,=@')}" + (f"?{query}" if query else "")

    def as_dict(self) -> dict[str, Any]:
        """What is not left to be found out, by name."""
        return {k: v for k, v in asdict(self).items() if v}

    def with_options(self, given: Mapping[str, Any]) -> Description:
        """The description with some fields replaced; values may be strings.

        Raises:
            TaskError: an unknown name, or a value of another type.
        """
        types = {x.name: x.type for x in fields(self)}
        unknown = sorted(given.keys() - types.keys())
        if unknown:
            raise TaskError(
                f"expected a task described by {', '.join(types)}; got {', '.join(unknown)}"
            )
        found: dict[str, Any] = {}
        for name, value in given.items():
            if name in ("data", "learn"):  # what kind of folder it is, is seen
                value = re.sub(r"^(imagefolder|datasets):", "", str(value))
            whole = types[name] == "int"
            if whole and not re.fullmatch(r"\d+", str(value)):
                raise TaskError(f"expected a task's {name} to be a number, got {shown(value)}")
            found[name] = int(value) if whole else str(value)
        return replace(self, **found)


def described(text: str) -> Description | None:
    """The description in a string, or in the YAML file that it names; None where it is neither.

    Raises:
        TaskError: a file that cannot be read, an unknown key or a value out of range.
    """
    source, colon, rest = text.partition(":")
    if colon and source in SOURCES:
        model, _, query = rest.partition("?")
        # a model's own options, as in timm:vit_tiny,checkpoint=FILE
        name, *own = model.split(",")
        pairs = [x.partition("=")[::2] for x in own] + parse_qsl(query, keep_blank_values=True)
        return Description(source, unquote(name)).with_options(dict(pairs))
    if Path(text).suffix in YAML:
        return _of_file(Path(text))
    return None


def _of_file(path: Path) -> Description:
    """The description that a YAML file holds; paths in it are relative to it."""
    import yaml

    try:
        found = yaml.safe_load(path.read_text())
    except OSError as error:
        raise TaskError(f"expected a task's file {path}, got: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TaskError(f"expected YAML in {path}, got: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("model"), str):
        raise TaskError(f"expected keys with a model in {path}, got {type(found).__name__}")
    model = described(found.pop("model"))
    if model is None:
        raise TaskError(
            f"expected a model of {path} that begins with {':, '.join(SOURCES)}:, got another"
        )
    given = {str(k): "" if v is None else v for k, v in found.items()}
    for name in PATHS:
        if name in given:
            given[name] = _beside(path, str(given[name]))
    named = replace(model, model=_beside(path, model.model))
    return named.with_options(given)


def _beside(file: Path, name: str) -> str:
    """A path that is relative to a file's folder, where there is such a one; else the name."""
    beside = file.parent / name
    return str(beside) if name and beside.exists() else name


def as_yaml(description: Description, folder: Path) -> str:
    """A YAML file for ``folder`` that holds the description; paths are relative to there."""
    import yaml

    paths = {name: getattr(description, name) for name in ("model", *PATHS)}
    moved: dict[str, Any] = {k: _from(folder, v) for k, v in paths.items()}
    description = replace(description, **moved)
    rest = {k: v for k, v in description.as_dict().items() if k not in ("source", "model")}
    text: str = yaml.safe_dump(
        {"model": f"{description.source}:{description.model}", **rest}, sort_keys=False
    )
    return text


def _from(folder: Path, name: str) -> str:
    """A path as seen from a folder, where there is such a file; else the name."""
    if not name or Path(name).is_absolute() or not Path(name).exists():
        return name
    return os.path.relpath(name, folder)
