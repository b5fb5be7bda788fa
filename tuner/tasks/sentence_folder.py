"""What a folder of sentence-transformers says of its modules, read without that package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnpass.errors import TaskError

POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Names of a pooling in older files, and the name that is used now."""

KNOWN = ("Transformer", "Pooling", "Normalize")
CURE = "write a task of your own (docs/usage.md)"


@dataclass(frozen=True)
class SentenceFolder:
    """A folder with the modules that a sentence encoder is made of.

    Attributes:
        folder: the folder. modules: of each its kind, and the path of its files there.
    """

    folder: Path
    modules: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, name: str) -> SentenceFolder:
        """The folder of this name, or the hub's model of it, downloaded.

        Raises:
            TaskError: no such folder or model, or modules that are not supported.
        """
        folder = Path(name) if Path(name).exists() else _downloaded(name)
        file = folder / "modules.json"
        if not file.exists():
            raise TaskError(f"expected a model of sentence-transformers, with {file}; found none")
        rows = [
            (str(m["type"]).rpartition(".")[2], str(m["path"]))
            for m in json.loads(file.read_text())
        ]
        for kind, _ in rows:
            if kind not in KNOWN:
                raise TaskError(
                    f"expected modules {', '.join(KNOWN)} in {file}, got {kind}; {CURE}"
                )
        return cls(folder, tuple(rows))

    @property
    def transformer(self) -> str:
        """The folder of the transformer."""
        return str(self.folder / next(path for kind, path in self.modules if kind == KNOWN[0]))

    def pooling(self) -> tuple[str, bool]:
        """How tokens are pooled: ``mean``, ``cls`` or ``lasttoken``; and whether to unit length.

        Raises:
            TaskError: another pooling.
        """
        how, unit = "mean", any(kind == "Normalize" for kind, _ in self.modules)
        for kind, path in self.modules:
            if kind == "Pooling":
                config = json.loads((self.folder / path / "config.json").read_text())
                how = _mode(config)
        if how not in POOLINGS.values():
            known = ", ".join(POOLINGS.values())
            raise TaskError(f"expected pooling by {known} in {self.folder}, got {how}; {CURE}")
        return how, unit


def _mode(config: dict[str, Any]) -> str:
    if isinstance(config.get("pooling_mode"), str):
        return str(config["pooling_mode"])
    modes = [k for k, on in config.items() if k.startswith("pooling_mode_") and on is True]
    return POOLINGS.get(modes[0], modes[0]) if len(modes) == 1 else " and ".join(modes) or "mean"


def _downloaded(name: str) -> Path:
    """The folder of a hub's model, from the local cache or the network.

    Raises:
        TaskError: there is none.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name))
    except (OSError, ValueError) as error:
        raise TaskError(
            f"expected a folder or a hub's name of sentence-transformers, got {name}: {error}"
        ) from error
