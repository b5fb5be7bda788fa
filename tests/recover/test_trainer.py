"""The training loop: precision, clipping, rates, and units that do not disturb each other."""

from __future__ import annotations

import pytest
import torch
from recovery_problems import Scripted, batches, data, model, planned, trained
from torch import Tensor, nn

import attnpass
from attnpass import Capture, Plan
from attnpass.errors import MeasureError
from attnpass.recover.checkpoint import Checkpoint
from attnpass.recover.distillation import add_deltas
from attnpass.recover.global_loss import GlobalLoss
from attnpass.recover.local_loss import LocalLoss
from attnpass.recover.options import DistilOptions
from attnpass.recover.trainer import FAILURES, LOSS_SCALE, SAVE_SHARE, Trainer
from attnpass.recover.units import TrainedParameter, Unit


# three trainings of real plans: bit by bit the same, alone or together
@pytest.mark.slow
def test_plans_learn_side_by_side_as_they_would_alone():
    net, found = model(), []
    for labels in (("sigmoid", "hydra"), ("sigmoid",), ("hydra",)):
        plans = {form: planned(net, form) for form in labels}
        capture = Capture(net).trace(data())
        for plan in plans.values():
            add_deltas(capture, plan, DistilOptions())
        trainer = Trainer(
            LocalLoss(capture, plans), DistilOptions(steps=6), 1.0, Checkpoint(None, "")
        )
        trainer.run(batches(), batches(1), None)
        found.append({label: plan.hash for label, plan in plans.items()})
    assert found[0] == found[1] | found[2]


@pytest.mark.parametrize(
    ("wanted", "native", "dtype", "narrow"),
    [
        (True, False, torch.float32, True),
        (False, True, torch.float32, False),
        (None, True, torch.float32, True),
        (None, True, torch.float16, False),
    ],
)
def test_products_are_narrow_where_asked_for_or_native(wanted, native, dtype, narrow, monkeypatch):
    monkeypatch.setattr("attnpass.environment.has_native_bfloat16", lambda device: native)
    seen = []

    class Products(Scripted):
        def losses(self, batch):
            seen.append((self.value @ self.value).dtype)
            yield from super().losses(batch)

    objective = Products([1.0 / (i + 1) for i in range(20)])
    objective.dtypes = {dtype}
    trained(objective, steps=10, autocast=wanted)
    assert len(seen) == 21 and set(seen) == {torch.bfloat16 if narrow else torch.float32}
    assert objective.value.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def test_gradients_are_clipped_and_large_weights_decay():
    trainer = trained(Scripted([]), selection=[], steps=1)
    assert trainer.parameters[0].grad.norm() == pytest.approx(1.0)
    group = trainer.optimiser.param_groups[0]
    assert group["weight_decay"] == 0.01
    vector = Scripted([])
    vector.value = nn.Parameter(torch.zeros(3))
    vector.units = {("", "a"): Unit([TrainedParameter(vector.value, 1.0, False)])}
    group = trained(vector, selection=[], steps=1).optimiser.param_groups[0]
    assert group["weight_decay"] == 0.0


@pytest.mark.parametrize(("start", "factor"), [(1e-9, 0.01), (0.3, 0.3), (1.5, 1.5), (9.0, 2.0)])
def test_rates_follow_the_loss_at_the_start(start, factor):
    objective = Scripted([])
    objective.start, objective.share = start, 0.5
    trainer = trained(objective, selection=[], steps=4)
    assert trainer.optimiser.param_groups[0]["size"] == pytest.approx(factor)
    assert trainer.rate == 0.5 * DistilOptions.rate and GlobalLoss.share < LocalLoss.share == 1.0


class _Half:
    """A loss of a float16 product, times ``factor``."""

    name, share, dtypes, recompute = "global", 1.0, frozenset({torch.float16}), None

    def __init__(self, factor: float) -> None:
        self.factor, self.weight = factor, nn.Parameter(torch.ones(4))
        self.units = {("", ""): Unit([TrainedParameter(self.weight, 1.0, False)])}

    def losses(self, batch):
        (x,) = batch
        yield ("", ""), (self.weight.half() * x).float().sum() * self.factor


@pytest.mark.parametrize("factor", [1e-9, 0.5, 1e3])
def test_gradients_of_a_float16_model_neither_vanish_nor_overflow(factor):
    objective = _Half(factor)
    trainer = Trainer(objective, DistilOptions(steps=40), 1.0, Checkpoint(None, ""))
    for _ in range(40):
        trainer._step([(torch.ones(4, dtype=torch.float16),)])
    assert torch.isfinite(objective.weight).all() and bool((objective.weight < 1).all())
    assert (trainer.scale < LOSS_SCALE) == (factor > 1)


def test_the_scale_of_a_float16_model_goes_on(tmp_path):
    file = tmp_path / "state"
    first = Trainer(_Half(1e3), DistilOptions(steps=40), 1.0, Checkpoint(file, "it"))
    for _ in range(20):
        first._step([(torch.ones(4, dtype=torch.float16),)])
    first._save()
    second = Trainer(_Half(1e3), DistilOptions(steps=40), 1.0, Checkpoint(file, "it"))
    assert second._resume() and second.scale == first.scale < LOSS_SCALE


def test_a_forward_without_gradients_is_one_line():
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    net = Encoder().eval()
    plan = Plan.create(net, data(), form="sigmoid")
    with pytest.raises(MeasureError, match=r"is its forward under torch.no_grad\(\)"):
        attnpass.distil(net, plan, batches(), steps=4, local=0)


class _Failing(Scripted):
    """Two units; the training loss of ``b``, or of both, is finite at the steps given."""

    def __init__(self, finite: set[int], both: bool = False) -> None:
        super().__init__([1.0 / (i + 1) for i in range(10_000)])
        self.other, self.finite, self.both, self.step = (
            nn.Parameter(torch.ones(2)),
            finite,
            both,
            0,
        )
        self.units[("", "b")] = Unit([TrainedParameter(self.other, 1.0, False)])

    def losses(self, batch):
        if not torch.is_grad_enabled():
            for _, loss in super().losses(batch):
                yield from ((("", name), loss) for name in "ab")
            return
        factor = 1.0 if self.step in self.finite else float("nan")
        self.step += 1
        yield ("", "a"), (self.value.sum() - 1).square() * (factor if self.both else 1.0)
        yield ("", "b"), self.other.square().sum() * factor


def test_a_unit_without_a_finite_loss_does_not_disturb_the_others():
    objective = _Failing({0, 1})
    trainer = trained(objective, steps=20)
    assert trainer.done.steps == 20 and trainer.failures[("", "b")] == 18
    assert trainer.failures[("", "a")] == 0 and bool((objective.value != 0).all())
    assert torch.isfinite(objective.other).all() and bool((objective.other < 1).all())
    with pytest.raises(MeasureError, match="expected a finite loss, got nan at step 4"):
        trained(_Failing({0, 1}), selection=[], steps=20)


def test_a_stage_without_finite_losses_ends_with_its_best_values():
    objective = _Failing(set(range(10)), both=True)
    objective.looks = [1.0, 0.5, *([2.0] * 100)]
    trainer = trained(objective, steps=40)
    assert trainer.done.steps == 10 + FAILURES
    assert torch.equal(objective.value.detach(), objective.seen[1])
    assert not torch.equal(objective.seen[1], objective.seen[-1])
    with pytest.raises(MeasureError, match="expected a finite loss, got nan at step 0"):
        trained(_Failing(set(), both=True), steps=40)


def test_gradients_that_are_not_finite_change_nothing():
    class Steep(Scripted):
        """The square root's gradient at 0 is infinite."""

        def losses(self, batch):
            for key, loss in super().losses(batch):
                yield key, self.value.abs().sqrt().sum() if loss.requires_grad else loss

    objective = Steep([1.0] * 100)
    trained(objective, steps=5)
    assert not objective.value.detach().any()


def test_a_unit_is_rated_by_its_first_finite_loss():
    objective = _Failing({1, 2, 3})
    with torch.no_grad():
        objective.other.fill_(0.1)  # a loss of 0.02
    trainer = trained(objective, steps=4)
    sizes = {group["unit"]: group["size"] for group in trainer.optimiser.param_groups}
    assert sizes["", "a"] == pytest.approx(1.0) and sizes["", "b"] == pytest.approx(0.02)


def test_slow_checkpoints_are_written_seldom(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("attnpass.recover.trainer.time.monotonic", lambda: clock[0])
    trainer = Trainer(Scripted([1.0]), DistilOptions(steps=4), 1.0, Checkpoint(None, ""))

    def slow(state: object) -> None:
        clock[0] += 9.0

    monkeypatch.setattr(trainer.saved, "save", slow)
    trainer._save()
    assert trainer._saved_at == 9.0 and trainer._save_interval == pytest.approx(9.0 / SAVE_SHARE)


@pytest.mark.parametrize("selection", [batches(1), []])
def test_a_checkpoint_is_as_large_as_was_foretold(tmp_path, selection):
    net = model()
    plan = planned(net)
    capture = Capture(net).trace(data())
    add_deltas(capture, plan, DistilOptions())
    objective = LocalLoss(capture, {"": plan})
    saved = Checkpoint(tmp_path / "state", "name")
    trainer = Trainer(objective, DistilOptions(steps=2), 1.0, saved)
    memory, disk = trainer.needs(selection)
    learning = sum(p.numel() for p in plan.parameters())
    assert memory == disk + 4 * learning
    trainer.run(batches(), selection, None)
    trainer._save()
    size = (tmp_path / "state").stat().st_size
    assert disk < size < 1.5 * disk, "names and steps are small beside the numbers"
