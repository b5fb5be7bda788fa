"""Every variant of the recipe trains a plan of its own, and leaves the recipe as it was."""

from __future__ import annotations

import pytest
import torch
from scripts import ablation, byte_model

import attnpass
from attnpass import Plan, Task
from attnpass.recover import distances, global_loss


@pytest.fixture(scope="module")
def case() -> ablation.Case:
    torch.manual_seed(0)
    model = byte_model.ByteModel(16, 2, 2).eval()
    drawn = [torch.randint(256, (4, 33)) for _ in range(80)]
    judged = [((x[:, :-1],), x[:, 1:].reshape(-1, 8)) for x in drawn[:8]]
    lessons = [(x[:, :-1],) for x in drawn[8:]]
    task = Task(
        name="tiny",
        model=model,
        example=lessons[0],
        calibration=lessons[:2],
        validation=judged,
        score=byte_model.bits,
        recovery=lessons,
    )
    plan = Plan.create(model, *task.example, form="hydra")
    attnpass.calibrate(model, plan, task.calibration)
    return ablation.Case(task, plan, lessons, [lessons[-1]])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ablation.VARIANTS))
def test_a_variant_trains_a_copy_and_nothing_stays_changed(case, name):
    constants = global_loss.HIDDEN_WEIGHT, distances.TEMPERATURE
    before = case.plan.hash
    plan, seconds = ablation.take(case, ablation.VARIANTS[name], 4)
    assert case.plan.hash == before and plan.hash != before and seconds > 0
    after = global_loss.HIDDEN_WEIGHT, distances.TEMPERATURE
    assert after == constants
    assert not case.plan.deltas and bool(plan.deltas) == (name != "no deltas")
    assert all(e.form == "hydra" for e in plan.sites.values())


def test_mixing_goes_from_softmax_to_the_form(case, monkeypatch):
    form = attnpass.Capture(case.task.model).trace(*case.task.example)
    (site, _) = form.sites
    mixed = ablation.Mixed(case.plan.module(site), site)
    q, k, v = (torch.randn(2, 2, 32, 8) for _ in "qkv")
    shares = {}
    for share in (0.0, 0.5, 1.0):
        monkeypatch.setattr(ablation.Mixed, "share", share)
        shares[share] = mixed(q, k, v)
    assert torch.equal(shares[0.0], mixed.softmax(q, k, v))
    assert torch.equal(shares[1.0], mixed.form(q, k, v))
    torch.testing.assert_close(shares[0.5], (shares[0.0] + shares[1.0]) / 2)


def test_rows_are_judged_on_items_that_did_not_train(case):
    found = dict(ablation.rows(case, 2, ["calibrated only", "the recipe"]))
    assert found["calibrated only"]["steps"] == 0 and found["the recipe"]["steps"] == 2
    assert found["the recipe"]["drop"] != found["calibrated only"]["drop"]
    lines = ablation.table({"rows": found})
    assert len(lines) == 4 and lines[2].startswith("| calibrated only | 0 | ")
