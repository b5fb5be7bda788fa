"""One change to a tiny task, and the folder of files that it makes before and after."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

TASK = """
import os

import torch
import torch.nn.functional as F
from torch import nn

from attnpass import Task

KNOB = float(os.environ["KN" + "OB"])  # no key can know this name
{top}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(b, n, d))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.head = Attention(), nn.Linear(8, 5)
        {init}

    def forward(self, x):
        x = x + self.attn(x)
        {forward}
        return self.head(x.mean(1))


{score}


def task():
    torch.manual_seed(0)
    model = Model().eval()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 6, 8, generator=generator)
    y = torch.randint(5, (60,), generator=generator)
    learn = torch.randn(8, 6, 8, generator=generator)
    size, calibration, recovery = 10, [(learn,)], []
    {setup}
    validation = [((a,), b) for a, b in zip(x.split(size), y.split(size))]
    return Task("tiny", model, (x[:2],), calibration, validation, score, recovery=recovery)
"""
"""The task with its slots. What a run must do with it is short: one attention, 60 items."""

LOSS = """def score(output, target):
    return -F.cross_entropy(output, target, reduction="none")"""

SLOTS = {"top": "", "init": "", "forward": "", "score": LOSS, "setup": ""}


@dataclass(frozen=True)
class Change:
    """A change to the task.

    Attributes:
        kind, name: of the change. slots: texts for the slots of ``TASK``.
        files: other files of the task, by name. text: what is replaced by what in all of them.
        knob: a number that only the running task knows, before and after.
        env: environment variables before and after. begin: statements that run before the task is
            loaded, before and after. apart: whether torch must start with these variables.
        calibrates: whether it changes what plans are fitted to, so that the run is another.
    """

    kind: str
    name: str
    slots: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    text: tuple[str, str] = ("", "")
    knob: tuple[float, float] = (1.0, 1.0)
    env: tuple[dict[str, str], dict[str, str]] = field(default_factory=lambda: ({}, {}))
    begin: tuple[str, str] = ("", "")
    apart: bool = False
    calibrates: bool = False

    def write(self, folder: Path, after: bool) -> None:
        """Write the task's files as they are before or after the change."""
        slots = {**SLOTS, **self.slots}
        shown = {
            k: v.replace("\n", "\n        " if k in ("init", "forward") else "\n    ")
            if k in ("init", "forward", "setup")
            else v
            for k, v in slots.items()
        }
        texts = {"mine.py": TASK.format(**shown), **self.files}
        assert not self.text[0] or any(self.text[0] in x for x in texts.values()), self.name
        for name, text in texts.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace(*self.text) if after and self.text[0] else text)

    def variables(self, after: bool) -> dict[str, str]:
        """The environment variables before or after."""
        return {**self.env[after], "KNOB": str(self.knob[after])}
