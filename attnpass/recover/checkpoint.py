"""The file from which an interrupted distillation goes on."""

from __future__ import annotations

import json
from pathlib import Path

from attnpass.errors import OptionError
from attnpass.files import replace_file
from attnpass.recover.stage import Stage
from attnpass.recover.stage_state import StageState


class Checkpoint:
    """One safetensors file with a JSON header, written whole or not at all.

    Args:
        path: of the file, which need not exist; None keeps nothing.
        name: digest of what the distillation depends on; a file of another name is refused.

    Attributes:
        finished: the stages that were done.
        interrupted: the stage that was not, as it was last saved.

    Raises:
        OptionError: the file is not a checkpoint, or one of another name.
    """

    def __init__(self, path: str | Path | None, name: str) -> None:
        self.path, self.name = None if path is None else Path(path), name
        self.finished: list[Stage] = []
        self.interrupted: StageState | None = None
        if self.path is not None and self.path.exists():
            self._load(self.path)

    def _load(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                header = json.loads((file.metadata() or {})["state"])
                name = header["name"]
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise OptionError(
                f"expected a checkpoint of a distillation at {path}, got: {error}"
            ) from error
        if name != self.name:
            raise OptionError(
                f"expected a checkpoint of this plan, these options and inputs at {path},"
                " got one of others; delete it or choose another file"
            )
        self.finished = [Stage.of(s) for s in header["finished"]]
        self.interrupted = StageState.of(header, tensors)

    def save(self, state: StageState) -> None:
        """Write the state of the current stage and the stages before it."""
        from safetensors.torch import save_file

        if self.path is None:
            return
        finished = [s.as_dict() for s in self.finished]
        text = json.dumps({**state.header(), "name": self.name, "finished": finished})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = {k: v.detach().cpu().contiguous() for k, v in state.tensors().items()}
        replace_file(self.path, lambda half: save_file(kept, half, {"state": text}))

    def remove(self) -> None:
        """Delete the file, where there is one: the distillation is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
