"""The loop of distillation: AdamW, warm-up and cosine, clipping, early stop, checkpoints."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from attnpass.errors import OptionError
from attnpass.files import replace_file


@dataclass
class Stage:
    """What one stage of distillation did.

    Attributes:
        name: ``local`` or ``global``. steps: done, of ``total``. seconds: that took.
        losses: mean loss of the steps between two looks.
        looks: ``(step, loss on the selection)``.
        kept: per plan and site the step whose values were kept, where a selection chose.
        best: per plan and site the loss of the values that were kept, on the selection; without
            one, of the last step.
    """

    name: str
    steps: int = 0
    total: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    looks: list[tuple[int, float]] = field(default_factory=list)
    kept: dict[str, int] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The stage as plain JSON types."""
        return asdict(self)

    @classmethod
    def of(cls, value: dict[str, Any]) -> Stage:
        """The stage of plain JSON types."""
        return cls(**{**value, "looks": [(step, loss) for step, loss in value["looks"]]})


class Checkpoint:
    """One file of tensors and a JSON header, written whole or not at all.

    Args:
        path: of the file, which need not exist; None keeps nothing.
        name: what it belongs to.

    Attributes:
        finished: the stages that were done. state, tensors: of the stage that was not.

    Raises:
        OptionError: the file is not a checkpoint, or one of another name.
    """

    def __init__(self, path: str | Path | None, name: str) -> None:
        from safetensors import SafetensorError, safe_open

        self.path, self.name = None if path is None else Path(path), name
        self.finished: list[Stage] = []
        self.state: dict[str, Any] = {}
        self.tensors: dict[str, Tensor] = {}
        if self.path is None or not self.path.exists():
            return
        try:
            with safe_open(self.path, "pt") as file:
                self.state = json.loads((file.metadata() or {})["state"])
                theirs = self.state["name"]
                self.tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise OptionError(
                f"expected a checkpoint of a distillation at {self.path}, got: {error}"
            ) from error
        if theirs != self.name:
            raise OptionError(
                f"expected a checkpoint of this plan, these options and inputs at {self.path},"
                " got one of others; delete it or choose another file"
            )
        self.finished = [Stage.of(s) for s in self.state["finished"]]

    def save(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Write the state of the current stage."""
        from safetensors.torch import save_file

        if self.path is None:
            return
        finished = [s.as_dict() for s in self.finished]
        header = {"state": json.dumps({**state, "name": self.name, "finished": finished})}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        replace_file(self.path, lambda half: save_file(kept, half, header))

    def remove(self) -> None:
        """The work is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
