"""Requests as bytes: the plan that arrives is the plan that was sent."""

from __future__ import annotations

import pickle

import pytest
from tuning import TINY, Replies

from attnpass import Plan
from attnpass.errors import PlanError
from attnpass.task import load_task
from attnpass.tuner.measure import PackedRequest, Protocol
from attnpass.tuner.measure.packing import PackedPlan


@pytest.fixture(scope="module")
def plan() -> Plan:
    task = load_task(TINY)
    return Plan.create(task.model, *task.example, form="hydra")


def test_a_plan_arrives_with_its_parameters(plan):
    packed = PackedPlan.of(plan)
    assert packed.tensors and pickle.loads(pickle.dumps(packed)) == packed
    assert packed.plan().hash == plan.hash
    exact = Plan({})
    assert PackedPlan.of(exact).tensors == b"" and PackedPlan.of(exact).plan().hash == exact.hash


def test_a_damaged_plan_is_refused(plan):
    with pytest.raises(PlanError):
        PackedPlan("", '{"sites": 3}').plan()


def test_a_worker_gets_files(plan):
    worker = Replies(None, None)
    request = PackedRequest.of([None, plan, plan], Protocol(2))
    assert request.size == 3 and request.plans[1] is request.plans[2]
    assert request.asked_of(worker).hashes == ["", plan.hash, plan.hash]
    worker = Replies("reply")
    assert PackedRequest(Protocol(4)).asked_of(worker) == "reply"
    assert worker.asked == [Protocol(4)] and PackedRequest(Protocol(4)).size == 5
