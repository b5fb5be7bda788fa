"""The worker's side, without a process: the gate and the proof of the plan."""

from __future__ import annotations

import pytest
from tuning import TASKS, TINY

from attnpass import Plan
from attnpass.errors import MeasureError, TaskError
from attnpass.plan import assign
from attnpass.report import Report
from attnpass.task import load_task
from attnpass.tuner.measure import bench as module
from attnpass.tuner.measure import model_digest
from attnpass.tuner.measure.bench import Bench
from attnpass.tuner.measure.exchange import (
    CeilingRequest,
    CompileSettings,
    PlansRequest,
    Protocol,
)


@pytest.fixture
def bench():
    return Bench(TINY, CompileSettings("eager"))


@pytest.fixture
def path(bench, tmp_path):
    plan = Plan.create(bench.task.model, *bench.task.example, form="hydra")
    return str(plan.save(tmp_path / "plan.json"))


def test_plans_are_timed_once_compiled(bench, path):
    found = bench.answer(PlansRequest((None, path, path), Protocol(2)))
    assert found.hashes == ["", *[Plan.load(path).hash] * 2]
    assert [len(row) for row in found.times] == [2, 2, 2] and len(bench.compiled) == 2


def test_fewer_items_are_compiled_on_their_own(bench, path):
    taken = []
    bench.task.model.register_forward_pre_hook(lambda model, given: taken.append(len(given[0])))
    for items in (2, 0):
        bench.answer(PlansRequest((None, path), Protocol(2, items=items)))
        bench.answer(CeilingRequest(Protocol(2, items=items)))
    assert {items for _, items in bench.compiled} == {0, 2} == set(bench.ablations)
    assert set(taken) == {2, len(bench.task.example[0])}


def test_several_examples_are_one_weighted_time(monkeypatch):
    taken = iter([[[1.0] * 3, [2.0] * 3], [[5.0] * 3, [6.0] * 3]])
    monkeypatch.setattr(module, "interleave", lambda runs, **how: next(taken))
    bench = Bench(f"{TASKS}:served", CompileSettings("eager"))
    found = bench.answer(PlansRequest((None, None), Protocol(3, memory=True)))
    assert found.times == [[2.0] * 3, [3.0] * 3], "weights of 3 and 1"
    assert found.shapes == [[1.0, 5.0], [2.0, 6.0]]
    assert len(found.peaks) == 2 and all(x >= 0 for x in found.peaks)


def test_a_peak_that_nothing_tells_is_unknown_and_not_nothing(bench, monkeypatch):
    monkeypatch.setattr(module, "peak_mib", lambda run, cuda: None)
    assert bench.answer(PlansRequest((None, None), Protocol(2, memory=True))).peaks == []


def test_a_training_step_has_a_backward_and_leaves_no_gradients(path):
    bench = Bench(TINY, CompileSettings("eager", objective="train"))
    hooked = []
    first = next(bench.task.model.parameters())
    first.register_hook(lambda g: hooked.append(g.shape))
    bench.answer(PlansRequest((None, path), Protocol(2)))
    assert hooked and all(p.grad is None for p in bench.task.model.parameters())
    assert all(not p.requires_grad for p in Plan.load(path).frozen().parameters())


def test_a_ceiling_has_five_series(bench):
    found = bench.answer(CeilingRequest(Protocol(2)))
    assert len(found.times) == 5 and found.hashes == []


def test_a_ceiling_where_no_attention_can_be_skipped_or_replaced(bench, monkeypatch):
    monkeypatch.setattr(module, "assign", lambda sites, form: assign(sites, "softmax"))
    monkeypatch.setattr("attnpass.tuner.measure.ablation._free", lambda site: False)
    assert len(bench.answer(CeilingRequest(Protocol(2))).times) == 5


def test_another_result_is_refused(bench, path, monkeypatch):
    compiled = bench._compile

    def wrong(options):
        run = compiled(options)
        return lambda *x: run(*x) * 1.01

    monkeypatch.setattr(bench, "_compile", wrong)
    with pytest.raises(MeasureError, match="got a relative difference of 0.01"):
        bench.answer(PlansRequest((path,), Protocol(1)))


def test_another_plan_is_refused(bench, path, monkeypatch):
    monkeypatch.setattr(module, "compiled_report", lambda: Report(plan="other"))
    with pytest.raises(MeasureError, match=f"expected plan {Plan.load(path).hash} to run, got"):
        bench.answer(PlansRequest((path,), Protocol(1)))


def test_a_task_that_makes_another_model_each_time_is_refused():
    right = model_digest(load_task(TINY).model)
    assert Bench(TINY, CompileSettings("eager", weights=right)).settings.weights == right
    with pytest.raises(TaskError, match="to make the same model each time, got other weights"):
        Bench(TINY, CompileSettings("eager", weights="0" * 16))
