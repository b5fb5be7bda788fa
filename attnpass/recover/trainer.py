"""The loop of distillation: AdamW, warm-up and cosine, clipping, early stop, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from attnpass import environment
from attnpass.batch import Batch
from attnpass.errors import MeasureError
from attnpass.recover.checkpoint import Checkpoint, Stage
from attnpass.recover.losses import Global, Key, Local, judge
from attnpass.recover.options import DistilOptions
from attnpass.seeds import seeded
from attnpass.torch_internals import pytree

Batches = Sequence[Batch]

Progress = Callable[[str, int, int, float], None]
"""Told after every step: the stage, the step, how many there will be, the loss."""

WARM_UP = 0.05
"""Share of a stage's steps in which the rate rises."""

FORMS_FIRST = 0.15
"""Share of the local stage in which the forms' parameters learn alone."""

LOOKS = 10
"""How often a stage looks at the selection."""

PATIENCE = 4
"""Looks that end a stage: none of them better than the best or than the one before."""

LOOKING = 0.02
"""Share of a budget of time that one look may take; at least one batch is looked at."""

LEAST = 0.01

MOST = 2.0
"""Bounds of a loss at the start, by which a unit's rate is multiplied: near the goal, small steps.
"""

CLIP = 1.0

DECAY = 0.01

SCALE = 2.0**16
"""What a float16 model's loss is multiplied by for its gradients; halved where they overflow."""

SAVE = 30.0
"""Seconds between checkpoints."""


class Trainer:
    """Trains one stage; the best values, by the selection, end up in the parameters.

    Args:
        share: of the options' steps or budget.
    """

    def __init__(
        self,
        objective: Local | Global,
        options: DistilOptions,
        share: float,
        saved: Checkpoint,
    ) -> None:
        self.objective, self.options, self.saved = objective, options, saved
        self.rate = options.rate * objective.share
        self.units = objective.units
        self.done = Stage(objective.name)
        self.seconds = options.budget * share
        if options.steps is not None:
            self.done.total = max(round(options.steps * share), 1)
        rows = [(key, *x) for key, unit in self.units.items() for x in unit.values]
        self.parameters = [p for _, p, _, _ in rows]
        self.optimiser = torch.optim.AdamW(
            [
                {
                    "params": [p],
                    "unit": key,
                    "size": size,
                    "late": late,
                    "weight_decay": DECAY if p.dim() > 1 else 0.0,
                }
                for key, p, size, late in rows
            ],
            lr=self.rate,
        )
        self.best: dict[Key, float] = {}
        self.values: dict[Key, list[Tensor]] = {}
        self.last: dict[Key, float] = {}
        self.stale = 0
        self.scale = SCALE if torch.float16 in objective.dtypes else 1.0
        self._first = 0.0
        self._losses: list[float] = []
        self._looked = self._watched = 0
        self._clock, self._saved_at = time.monotonic(), -math.inf

    def run(self, inputs: Batches, selection: Batches, progress: Progress | None) -> Stage:
        """All steps that are left; returns what was done.

        What ``progress`` raises ends the stage, which is saved first.

        Raises:
            MeasureError: the loss is not finite, or no gradient reaches what learns.
        """
        with torch.enable_grad():
            if not self._resume():
                self._look(selection)  # what learns starts from may be the best
            while not self._over():
                loss = self._step(inputs)
                self._tick()
                if self._due():
                    self._look(selection)
                if time.monotonic() - self._saved_at > SAVE:
                    self._save()
                self._tell(progress, loss)
            self._keep_best()
        self.saved.finished.append(self.done)
        return self.done

    def _precision(self) -> AbstractContextManager[Any]:
        kind = self.parameters[0].device.type
        wanted = self.options.autocast
        if wanted is None:
            wanted = environment.narrow(kind) and self.objective.dtypes == {torch.float32}
        if not wanted:
            return nullcontext()
        # a weight that was cast without gradients must not serve where there are some
        return torch.autocast(kind, torch.bfloat16, cache_enabled=False)

    def _seeded(self, step: int) -> AbstractContextManager[None]:
        """Augmentation and dropout are the same in every run."""
        return seeded(self.options.seed * 1_000_003 + step)

    def _tell(self, progress: Progress | None, loss: float) -> None:
        if progress is None:
            return
        try:
            progress(self.done.name, self.done.steps, self.done.total, loss)
        except BaseException:
            self._save()
            raise

    def _over(self) -> bool:
        if self.stale >= PATIENCE:
            return True
        if self.options.steps is not None:
            return self.done.steps >= self.done.total
        return self.done.seconds >= self.seconds

    def _tick(self) -> None:
        """Count time; without a number of steps, so many as the time will hold."""
        now = time.monotonic()
        self.done.seconds += now - self._clock
        self._clock = now
        if self.options.steps is None and self.done.steps:
            # the first step captures the model: it says nothing of the others
            if self.done.steps == 1 or not self._first:
                self._first = self.done.seconds
            each = (self.done.seconds - self._first) / max(self.done.steps - 1, 1)
            left = (self.seconds - self.done.seconds) / (each or self._first)
            self.done.total = self.done.steps + max(round(left), 0)

    @property
    def _progress(self) -> float:
        """How much of the stage is over after the next step, 0 to 1."""
        if self.options.steps is not None:
            return (self.done.steps + 1) / self.done.total
        if self.done.steps < 2:
            return 0.0
        each = (self.done.seconds - self._first) / (self.done.steps - 1)
        left = max(self.seconds - self._first, 1e-9)
        return min((self.done.seconds - self._first + each) / left, 1.0)

    def _batch(self, inputs: Batches) -> Batch:
        """The batch of this step: a new order in every epoch, the same in every run."""
        epoch, at = divmod(self.done.steps, len(inputs))
        generator = torch.Generator().manual_seed(self.options.seed * 7919 + epoch)
        order = torch.randperm(len(inputs), generator=generator)
        batch: Batch = pytree.tree_map(_plain, inputs[int(order[at])])
        return batch

    def _step(self, inputs: Batches) -> float:
        """One optimiser step; returns the mean loss of the units."""
        losses = []
        self.optimiser.zero_grad()
        with self._seeded(self.done.steps), self._precision():
            for key, loss in self.objective.losses(self._batch(inputs)):
                losses.append(float(loss.detach()))
                self.last[key] = losses[-1]
                self._backward(key, loss)
        for unit in self.units.values():
            torch.nn.utils.clip_grad_norm_(unit.parameters, CLIP)
        for group in self.optimiser.param_groups:
            if self.done.steps == 0:
                group["size"] *= min(max(self.last.get(group["unit"], 1.0), LEAST), MOST)
            factor = self._factor(late=group["late"] and self.done.name == "local")
            group["lr"] = self.rate * group["size"] * factor
        self.optimiser.step()
        self.done.steps += 1
        mean = sum(losses) / max(len(losses), 1)
        self._losses.append(mean)
        return mean

    def _backward(self, key: Key, loss: Tensor) -> None:
        where = f"at step {self.done.steps} of the {self.done.name} stage"
        if not math.isfinite(float(loss.detach())):
            raise MeasureError(
                f"expected a finite loss, got {float(loss.detach())} {where}; do the calibrated"
                " plan and the model give finite outputs on all inputs? else a lower rate may help"
            )
        if not loss.requires_grad:
            raise MeasureError(
                f"expected a model that gradients pass through, got none {where};"
                " is its forward under torch.no_grad()?"
            )
        parameters = self.units[key].parameters
        # grad() leaves the model's own gradients alone, backward() would add to them
        grads = torch.autograd.grad(loss * self.scale, parameters, allow_unused=True)
        if self.scale > 1 and not all(g is None or bool(g.isfinite().all()) for g in grads):
            self.scale /= 2
            return
        for p, g in zip(parameters, grads, strict=True):
            if g is not None:
                g = g.contiguous() if self.scale == 1 else g / self.scale
                p.grad = g if p.grad is None else p.grad + g

    def _factor(self, late: bool) -> float:
        """Warm-up, then cosine to 0; ``late`` ones start when the forms have learnt."""
        at, start = self._progress, FORMS_FIRST if late else 0.0
        warm = min(max((at - start) / WARM_UP, 0.0), 1.0)
        return warm * 0.5 * (1 + math.cos(math.pi * at))

    def _due(self) -> bool:
        """Whether a tenth of the stage has passed since the last look."""
        due = (self.done.steps - self._looked) * LOOKS >= max(self.done.total, LOOKS)
        return due or (self._over() and self._looked < self.done.steps)

    def _look(self, selection: Batches) -> None:
        """Losses on the selection; a unit's values are kept where they are its best."""
        self._looked = self.done.steps
        if self._losses:
            self.done.losses.append(sum(self._losses) / len(self._losses))
        self._losses.clear()
        if not len(selection):
            return
        found: dict[Key, float] = {}
        start, count = time.monotonic(), self._watched or len(selection)
        for at in range(1, count + 1):
            with self._seeded(at), self._precision():
                judged = judge(self.objective, selection[at - 1])
            for key, loss in judged.items():
                found[key] = found.get(key, 0.0) + loss
            late = time.monotonic() - start > LOOKING * self.seconds
            if late and not self._watched and self.options.steps is None:
                count = at
                break
        # the same batches at every look, else losses could not be compared
        self._watched = count
        found = {key: loss / count for key, loss in found.items()}
        mean = sum(found.values()) / max(len(found), 1)
        # a high rate may cost what the start had; while it comes back, nothing is stale
        falls = bool(self.done.looks) and mean < self.done.looks[-1][1]
        self.stale += not falls and 2 * self.done.steps >= self.done.total > 0
        self.done.looks.append((self.done.steps, mean))
        for key, loss in found.items():
            if loss < self.best.get(key, math.inf):
                self.stale, self.best[key] = 0, loss
                self.values[key] = [p.detach().clone() for p in self.units[key].parameters]
                self.done.kept["|".join(key)] = self.done.steps
        self._tick()

    def _keep_best(self) -> None:
        self.done.best = {"|".join(k): x for k, x in (self.best or self.last).items()}
        with torch.no_grad():
            for key, values in self.values.items():
                for p, value in zip(self.units[key].parameters, values, strict=True):
                    p.copy_(value)

    def _save(self) -> None:
        self._saved_at = time.monotonic()
        state = self.optimiser.state
        tensors: dict[str, Tensor] = {f"value|{i}": p for i, p in enumerate(self.parameters)}
        for i, p in enumerate(self.parameters):
            tensors |= {f"{k}|{i}": v for k, v in state[p].items()}
        keys = list(self.units)
        for key, values in self.values.items():
            tensors |= {f"best|{keys.index(key)}|{i}": v for i, v in enumerate(values)}
        self.saved.save(
            {
                "stage": self.done.as_dict(),
                "best": [self.best.get(k) for k in keys],
                "stale": self.stale,
                "looked": self._looked,
                "watched": self._watched,
                "first": self._first,
                "last": [self.last.get(k) for k in keys],
                "losses": self._losses,
                "scale": self.scale,
                "sizes": [group["size"] for group in self.optimiser.param_groups],
            },
            tensors,
        )

    def _resume(self) -> bool:
        """Go on from the checkpoint, where it stopped in this stage; returns whether it did."""
        state, tensors = self.saved.state, self.saved.tensors
        if not state or state["stage"]["name"] != self.done.name:
            return False
        self.done = Stage.of(state["stage"])
        self.stale, self._looked = state["stale"], state["looked"]
        self._watched, self._first = state["watched"], state["first"]
        self._losses, self.scale = list(state["losses"]), state.get("scale", self.scale)
        keys = list(self.units)
        self.best, self.last = (
            {k: x for k, x in zip(keys, state[name], strict=True) if x is not None}
            for name in ("best", "last")
        )
        rows: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            kind, *at = name.split("|")
            if kind != "best":
                rows.setdefault(int(at[0]), {})[kind] = value
        for key in self.best:
            self.values[key] = [
                tensors[f"best|{keys.index(key)}|{i}"].to(p.device)
                for i, p in enumerate(self.units[key].parameters)
            ]
        for group, size in zip(self.optimiser.param_groups, state["sizes"], strict=True):
            group["size"] = size
        with torch.no_grad():
            for i, p in enumerate(self.parameters):
                p.copy_(rows[i].pop("value"))
                self.optimiser.state[p] = {
                    k: v if k == "step" else v.to(p.device) for k, v in rows[i].items()
                }
        self._clock = time.monotonic()
        return True


def _plain(x: Any) -> Any:
    """A tensor that autograd can keep: those of inference mode are not."""
    return x.clone() if isinstance(x, Tensor) and x.is_inference() else x
