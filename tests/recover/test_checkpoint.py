"""A run that was interrupted goes on to the same end, from files of older versions too."""

from __future__ import annotations

import shutil

import house
import pytest
import torch
from exact_model import ExactAttention, exact_batches
from recovery_problems import Stopped, batches, model, planned
from torch import nn

import attnpass
from attnpass import Plan
from attnpass.errors import OptionError
from attnpass.recover.checkpoint import Checkpoint
from attnpass.recover.trainer import Trainer


# two runs each, stopped in either stage: the same plan bit by bit
@pytest.mark.slow
@pytest.mark.parametrize("at", [("local", 5), ("global", 2), ("global", 7)])
def test_an_interrupted_run_goes_on_to_the_same_end(at, tmp_path, monkeypatch):
    monkeypatch.setattr("attnpass.recover.trainer.SAVE_SECONDS", 0.0)  # every step is saved
    net = model()
    given = {"steps": 16, "local": 0.5, "rank": 2, "selection": batches(1)}
    whole = planned(net)
    stages = attnpass.distil(net, whole, batches(), **given)

    def stop(stage: str, step: int, steps: int, loss: float) -> None:
        if (stage, step) == at:
            raise Stopped

    file = tmp_path / "state"
    with pytest.raises(Stopped):
        attnpass.distil(net, planned(net), batches(), checkpoint=file, progress=stop, **given)
    told = []
    plan = planned(net)
    resumed = attnpass.distil(
        net, plan, batches(), checkpoint=file, progress=lambda *x: told.append(x), **given
    )
    assert len(told) < 16 - at[1] - (8 if at[0] == "global" else 0) + 2
    assert plan.hash == whole.hash and not file.exists()
    assert [s.looks for s in resumed] == [s.looks for s in stages]
    assert [s.losses for s in resumed] == [s.losses for s in stages]


def test_the_interrupted_plan_itself_goes_on(tmp_path):
    net, file = model(), tmp_path / "state"

    def stop(stage: str, step: int, steps: int, loss: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    plan, whole = planned(net), planned(net)
    attnpass.distil(net, whole, batches(), steps=12, local=0)
    given = {"steps": 12, "local": 0, "checkpoint": file}
    with pytest.raises(KeyboardInterrupt):
        attnpass.distil(net, plan, batches(), progress=stop, **given)
    attnpass.distil(net, plan, batches(), **given)
    assert plan.hash == whole.hash


# all that a checkpoint's name depends on, changed one by one
@pytest.mark.slow
def test_a_checkpoint_of_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("attnpass.recover.trainer.SAVE_SECONDS", 0.0)
    net, file = model(), tmp_path / "state"

    def stop(*_: object) -> None:
        if file.exists():
            raise Stopped

    with pytest.raises(Stopped):
        attnpass.distil(net, planned(net), batches(), steps=8, checkpoint=file, progress=stop)
    other = model()
    other.head.weight.data.mul_(2)
    for changed in (
        {"steps": 9},
        {"model": other},
        {"plan": planned(net, "relu")},
        {"inputs": batches()[::-1]},
    ):
        given = {"model": net, "plan": planned(net), "inputs": batches(), "steps": 8} | changed
        with pytest.raises(OptionError, match="got one of others; delete it"):
            attnpass.distil(**given, checkpoint=file)
    file.write_bytes(b"something")
    with pytest.raises(OptionError, match="expected a checkpoint of a distillation at"):
        attnpass.distil(net, planned(net), batches(), steps=8, checkpoint=file)


# three runs of a model in training mode: its random numbers go on too
@pytest.mark.slow
def test_dropout_goes_on_where_it_stopped(tmp_path):
    class Stop(Exception):
        pass

    def stop(stage: str, step: int, total: int, loss: float) -> None:
        if step == 3:
            raise Stop

    def start() -> tuple[nn.Module, Plan]:
        net = model()
        net.head = nn.Sequential(nn.Dropout(0.5), net.head)
        plan = planned(net)
        return net.train(), plan

    net, whole = start()
    attnpass.distil(net, whole, batches(), steps=6)
    given = {"steps": 6, "checkpoint": tmp_path / "state"}
    net, plan = start()
    with pytest.raises(Stop):
        attnpass.distil(net, plan, batches(), progress=stop, **given)
    net, plan = start()
    attnpass.distil(net, plan, batches(), **given)
    assert plan.hash == whole.hash


def test_an_early_interruption_loses_no_more_than_what_runs(tmp_path, monkeypatch):
    net, file = model(), tmp_path / "state"
    step, calls = Trainer._step, []

    def interrupted(self, inputs):
        calls.append(self.done.steps)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(self, inputs)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        attnpass.distil(net, planned(net), batches(), steps=6, checkpoint=file)
    attnpass.distil(net, planned(net), batches(), steps=6, checkpoint=file)
    assert calls == [0, 1, 2, 1, 2, 3, 4, 5], "the first step was kept"


@pytest.mark.parametrize(("stage", "step"), [("local", 4), ("global", 5)])
def test_a_checkpoint_of_the_flat_layout_goes_on(stage, step, tmp_path):
    """Its files were written by commit d68d292, before recovery had rooms, after that step."""
    options = {"steps": 16, "local": 0.5, "rank": 2, "outputs": "features"}
    net, given = ExactAttention().eval(), exact_batches()
    plans = [Plan.create(net, *given[0], form="sigmoid") for _ in "ab"]
    stages = attnpass.distil(net, plans[0], given[:2], selection=given[2:], **options)
    file = tmp_path / "state"
    shutil.copy(house.ROOT / "tests" / "recover" / f"interrupted_{stage}.safetensors", file)
    told = []
    resumed = attnpass.distil(
        net,
        plans[1],
        given[:2],
        selection=given[2:],
        checkpoint=file,
        progress=lambda *state: told.append(state[:3]),
        **options,
    )
    assert told[0] == (stage, step + 1, 8) and not file.exists()
    assert [s.name for s in resumed] == ["local", "global"]
    for one, other in zip(stages, resumed, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-4)
        assert [x for _, x in one.looks] == pytest.approx([x for _, x in other.looks], rel=1e-4)
    for a, b in zip(plans[0].parameters(), plans[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_checkpoint_without_a_file_keeps_nothing(tmp_path):
    saved = Checkpoint(None, "it")
    saved.remove()
    assert saved.finished == [] and saved.interrupted is None
    Checkpoint(tmp_path / "none", "it").remove()
    assert list(tmp_path.iterdir()) == []
