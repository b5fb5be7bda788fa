"""The training loop of one stage: AdamW, gradients clipped per unit, checkpoints."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from attnpass import environment
from attnpass.batch import Batch
from attnpass.errors import MeasureError, OptionError
from attnpass.recover.checkpoint import Checkpoint
from attnpass.recover.evaluation import PER_STAGE, TIME_SHARE, Evaluation
from attnpass.recover.objective import Objective
from attnpass.recover.options import DistilOptions
from attnpass.recover.room import Room
from attnpass.recover.schedule import Pace, batch_index, rate_factor
from attnpass.recover.stage import Progress, Stage
from attnpass.recover.stage_state import StageState
from attnpass.recover.units import UnitKey
from attnpass.seeds import seeded
from attnpass.torch_internals import pytree

MIN_RATE_FACTOR, MAX_RATE_FACTOR = 0.01, 2.0
"""A unit's learning rate is multiplied by its initial loss, clamped to these bounds, so that units
that start close to the target take small steps."""

MAX_GRADIENT_NORM = 1.0
"""Norm to which the gradients of a unit are clipped."""

WEIGHT_DECAY = 0.01
"""AdamW's decay of matrices; vectors have none."""

LOSS_SCALE = 2.0**16
"""Factor on a float16 model's loss while gradients are taken; halved where they overflow."""

SAVE_SECONDS, SAVE_SHARE = 30.0, 0.05
"""Seconds between checkpoints at least, and the share of the time that writing them may take."""

FAILURES = 3
"""Steps in a row without a finite loss that end a stage, or fail a unit without kept values."""


class Trainer:
    """Trains the units of one objective.

    Args:
        objective: what is trained. share: of the options' steps or budget, for this stage.
        saved: the checkpoint to go on from and to write to.

    Attributes:
        done: the record of the stage.
        units: the objective's. parameters: of all units, in the order of a checkpoint.
        rate: learning rate before each parameter's size and the schedule.
        scale: factor on the loss while gradients are taken (``LOSS_SCALE``).
        last: per unit the last loss that was finite.
        failures: per unit the steps in a row without one.
        evaluation: what the selection says.
        room: how many items are learned from at once.
    """

    def __init__(
        self,
        objective: Objective,
        options: DistilOptions,
        share: float,
        saved: Checkpoint,
    ) -> None:
        self.objective, self.options, self.saved = objective, options, saved
        self.units = objective.units
        self.rate = options.rate * objective.share
        self.done = Stage(objective.name)
        timed, budget = options.steps is None, options.budget * share
        if options.steps is not None:
            self.done.total = max(round(options.steps * share), 1)
        self.pace = Pace(options.steps, budget)
        self.evaluation = Evaluation(objective, TIME_SHARE * budget if timed else math.inf)
        self.parameters = [p for unit in self.units.values() for p in unit.parameters]
        self.optimiser = torch.optim.AdamW(
            [
                {
                    "params": [t.parameter],
                    "unit": key,
                    "size": t.size,
                    "delayed": t.delayed and objective.name == "local",
                    "weight_decay": WEIGHT_DECAY if t.parameter.dim() > 1 else 0.0,
                }
                for key, unit in self.units.items()
                for t in unit.trained
            ],
            lr=self.rate,
        )
        self.last: dict[UnitKey, float] = {}
        self.failures = Counter[UnitKey]()
        self._rated: set[UnitKey] = set()
        self.scale = LOSS_SCALE if torch.float16 in objective.dtypes else 1.0
        needed = self.needs(())[0]
        device = self.parameters[0].device if self.parameters else torch.device("cpu")
        self.room = Room(device, needed, options.micro_batch, objective.recompute)
        self._step_losses: list[float] = []
        self._evaluated_step = 0
        self._saved_at, self._save_interval = -math.inf, SAVE_SECONDS

    def needs(self, selection: Sequence[Batch]) -> tuple[int, int]:
        """Bytes of memory that training takes beside the model and activations, and of its file.

        Of every number that learns: itself, its gradient, two moments of AdamW, and with a
        selection its best value; the file holds all but the gradient.
        """
        each = sum(p.numel() * p.element_size() for p in self.parameters)
        copies = 5 if len(selection) else 4
        return copies * each, (copies - 1) * each

    def run(
        self, inputs: Sequence[Batch], selection: Sequence[Batch], progress: Progress | None
    ) -> Stage:
        """Take all steps that are left; returns the record of the stage.

        With a selection the parameters end up with the values that were best on it. An exception
        of ``progress`` ends the stage, which is saved first. A unit whose loss or gradients
        are not finite leaves out the step; where that is so of all units for some steps, the stage
        ends with the best values so far.

        Raises:
            MeasureError: no loss of the first step is finite, or none of some unit for some steps
                without values to go back to; or no gradient reaches what learns.
        """
        with torch.enable_grad():
            if not self._resume():
                self._evaluate(selection)  # the values at the start may be the best
            while not self._over():
                loss = self._step(inputs)
                self.pace.count(self.done)
                if self._evaluation_is_due():
                    self._evaluate(selection)
                if time.monotonic() - self._saved_at > self._save_interval:
                    self._save()
                self._tell(progress, loss)
        best = self.evaluation.best or self.last
        self.done.best = {"|".join(key): loss for key, loss in best.items()}
        self.evaluation.restore_best()
        self.saved.finished.append(self.done)
        return self.done

    @property
    def _names(self) -> list[str]:
        """The parameters' names, with the units' labels."""
        return [f"{key[0]}|{t.name}" for key, unit in self.units.items() for t in unit.trained]

    def _over(self) -> bool:
        failed = all(self.failures[key] >= FAILURES for key in self.units)
        return failed or self.evaluation.patience_is_over or self.pace.over(self.done)

    def _tell(self, progress: Progress | None, loss: float) -> None:
        if progress is None:
            return
        try:
            progress(self.done.name, self.done.steps, self.done.total, loss)
        except BaseException:
            self._save()
            raise

    @contextmanager
    def _conditions(self, number: int) -> Iterator[None]:
        """Seed and precision of a forward pass: dropout and augmentation repeat in every run."""
        with seeded(self.options.seed * 1_000_003 + number), self._precision():
            yield

    def _precision(self) -> AbstractContextManager[object]:
        kind = self.parameters[0].device.type
        wanted = self.options.autocast
        if wanted is None:
            wanted = environment.has_native_bfloat16(kind) and self.objective.dtypes == {
                torch.float32
            }
        if not wanted:
            return nullcontext()
        # a weight that was cast without gradients must not serve where there are some
        return torch.autocast(kind, torch.bfloat16, cache_enabled=False)

    def _step(self, inputs: Sequence[Batch]) -> float:
        """Take one step of the optimiser; returns the mean loss of the units."""
        losses, found = [], None
        self.optimiser.zero_grad()
        with self._conditions(self.done.steps):
            number = batch_index(self.done.steps, len(inputs), self.options.seed)
            batch: Batch = pytree.tree_map(_without_inference_mode, inputs[number])
            for share, rows in self.room.learn(batch, self._gradients):
                for key, found, gradients in rows:
                    if math.isfinite(found):
                        losses.append((share, found))
                        self.last[key], self.failures[key] = found, 0
                        self._add(key, gradients, share)
                    else:
                        self._count_failure(key, found)
        if found is not None and not self.last:
            raise self._not_finite(found)
        for unit in self.units.values():
            norm = torch.nn.utils.clip_grad_norm_(unit.parameters, MAX_GRADIENT_NORM)
            if not bool(norm.isfinite()):
                for p in unit.parameters:
                    p.grad = None
        self._set_rates()
        self.optimiser.step()
        self.done.steps += 1
        if not losses:
            return math.nan
        whole = sum(share for share, _ in losses)
        self._step_losses.append(sum(share * loss for share, loss in losses) / whole)
        return self._step_losses[-1]

    def _gradients(self, batch: Batch) -> list[tuple[UnitKey, float, list[Tensor | None]]]:
        """Every loss on a batch with its gradients; one that is not finite has none."""
        rows = []
        for key, loss in self.objective.losses(batch):
            value = float(loss.detach())
            rows.append((key, value, self._taken(key, loss) if math.isfinite(value) else []))
        return rows

    def _count_failure(self, key: UnitKey, found: float) -> None:
        """Note a unit's loss that is not finite.

        Raises:
            MeasureError: it was the last of ``FAILURES`` in a row, with nothing to go back to.
        """
        self.failures[key] += 1
        if self.failures[key] >= FAILURES and key not in self.evaluation.values:
            raise self._not_finite(found)

    def _not_finite(self, found: float) -> MeasureError:
        return MeasureError(
            f"expected a finite loss, got {found} at step {self.done.steps} of the"
            f" {self.done.name} stage; do the calibrated plan and the model give finite outputs on"
            " all inputs? else a lower rate may help"
        )

    def _taken(self, key: UnitKey, loss: Tensor) -> list[Tensor | None]:
        """The gradients of one loss; a float16 loss that overflows has none, and halves the scale.

        Raises:
            MeasureError: gradients do not reach the loss.
        """
        where = f"at step {self.done.steps} of the {self.done.name} stage"
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
            return []
        return [g if g is None or self.scale == 1 else g / self.scale for g in grads]

    def _add(self, key: UnitKey, gradients: list[Tensor | None], share: float) -> None:
        """Add the gradients of a part of the batch, times its share."""
        for p, g in zip(self.units[key].parameters, gradients, strict=False):
            if g is not None:
                g = g.contiguous() if share == 1 else g * share
                p.grad = g if p.grad is None else p.grad + g

    def _set_rates(self) -> None:
        """Learning rates of the step that is due; a unit is rated by its first loss."""
        progress = self.pace.progress(self.done)
        first = self.last.keys() - self._rated
        for group in self.optimiser.param_groups:
            if group["unit"] in first:
                initial = self.last[group["unit"]]
                group["size"] *= min(max(initial, MIN_RATE_FACTOR), MAX_RATE_FACTOR)
            group["lr"] = self.rate * group["size"] * rate_factor(progress, group["delayed"])
        self._rated |= first

    def _evaluation_is_due(self) -> bool:
        """Whether a tenth of the stage has passed since the last evaluation, or the stage ends."""
        since = self.done.steps - self._evaluated_step
        due = since * PER_STAGE >= max(self.done.total, PER_STAGE)
        return due or (self._over() and since > 0)

    def _evaluate(self, selection: Sequence[Batch]) -> None:
        """Record the training loss since the last time, then the loss on the selection."""
        self._evaluated_step = self.done.steps
        if self._step_losses:
            self.done.losses.append(sum(self._step_losses) / len(self._step_losses))
        self._step_losses.clear()
        if len(selection):
            self.evaluation.evaluate(selection, self.done, self._conditions)
            self.pace.count(self.done)

    def _save(self) -> None:
        start = time.monotonic()
        positions = {key: i for i, key in enumerate(self.units)}
        state = StageState(
            stage=self.done.as_dict(),
            parameters=list(self.parameters),
            optimiser=[self.optimiser.state[p] for p in self.parameters],
            best=[self.evaluation.best.get(key) for key in self.units],
            best_values={positions[key]: x for key, x in self.evaluation.values.items()},
            last=[self.last.get(key) for key in self.units],
            losses=self._step_losses,
            stale=self.evaluation.stale,
            looked=self._evaluated_step,
            watched=self.evaluation.batches,
            first=self.pace.first,
            scale=self.scale,
            sizes=[group["size"] for group in self.optimiser.param_groups],
            names=self._names,
        )
        self.saved.save(state)
        self._saved_at = time.monotonic()
        self._save_interval = max(SAVE_SECONDS, (self._saved_at - start) / SAVE_SHARE)

    def _resume(self) -> bool:
        """Go on from the checkpoint, where it stopped in this stage; returns whether it did."""
        state = self.saved.interrupted
        if state is None or state.stage["name"] != self.done.name:
            return False
        if state.names is None and len(state.parameters) == len(self.parameters):
            state = state.in_order([[t.place for t in u.trained] for u in self.units.values()])
        elif state.names != self._names:
            stored = len(state.parameters)
            raise OptionError(
                f"expected a checkpoint of {len(self._names)} parameters that learn here, got one"
                f" of {stored} others at {self.saved.path}; delete it"
            )
        self.done = Stage.of(state.stage)
        self._step_losses, self._evaluated_step = list(state.losses), state.looked
        self.scale = self.scale if state.scale is None else state.scale
        self.evaluation.stale, self.evaluation.batches = state.stale, state.watched
        self.evaluation.best = _by_key(self.units, state.best)
        self.last = _by_key(self.units, state.last)
        self._rated = set(self.last)
        for i, (key, unit) in enumerate(self.units.items()):
            if key in self.evaluation.best:
                self.evaluation.values[key] = [
                    value.to(p.device)
                    for p, value in zip(unit.parameters, state.best_values[i], strict=True)
                ]
        for group, size in zip(self.optimiser.param_groups, state.sizes, strict=True):
            group["size"] = size
        with torch.no_grad():
            rows = zip(self.parameters, state.parameters, state.optimiser, strict=True)
            for p, value, moments in rows:
                p.copy_(value)
                self.optimiser.state[p] = {
                    k: v if k == "step" else v.to(p.device) for k, v in moments.items()
                }
        self.pace.first = state.first
        self.pace.restart_clock()
        return True


def _by_key(keys: Iterable[UnitKey], values: Sequence[float | None]) -> dict[UnitKey, float]:
    """The values of a checkpoint by unit, those that are there."""
    return {key: x for key, x in zip(keys, values, strict=True) if x is not None}


def _without_inference_mode(x: object) -> object:
    """A leaf of a batch that autograd can keep: tensors of inference mode are copied."""
    return x.clone() if isinstance(x, Tensor) and x.is_inference() else x
