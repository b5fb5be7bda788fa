"""The baseline and what no plan can gain over it, from the whole batch or from a few items."""

from __future__ import annotations

import pytest
from tuning import Replies, failed, opened, series

from attnpass.plan import Plan, assign
from attnpass.store import Store
from attnpass.tuner.measure import Times
from attnpass.tuner.search.ceiling import items_to_time, measure_ceiling
from attnpass.tuner.search.latencies import Latencies

pytestmark = pytest.mark.usefixtures("little_noise")


@pytest.mark.parametrize("softer", [False, True])
def test_the_baseline_is_the_faster_of_two(tmp_path, softer):
    softmax = 8.0 if softer else 10.0
    times = Times([[x] * 30 for x in (10.0, 10.0, softmax, 4.0, 2.0)], [])
    with Store(tmp_path / "a.db") as store:
        found = measure_ceiling(Latencies(*opened(store), Replies(times)))
    assert found.softer == softer and found.floor == 0
    assert found.base_ms == softmax
    assert (found.ceiling, found.ceiling_skipat) == (softmax / 4, softmax / 2)
    assert found.share == pytest.approx(1 - 4 / softmax)
    assert found.bare.median == 2.5, "of the unchanged model"


def test_a_ceiling_has_an_interval_and_says_whether_it_is_reliable(tmp_path):
    given = [series(60, ms, 0.5, i) for i, ms in enumerate((10.0, 10.0, 10.0, 5.0, 2.0))]
    with Store(tmp_path / "a.db") as store:
        latencies = Latencies(*opened(store), Replies(*[Times(given, [])] * 4))
        found = measure_ceiling(latencies)
    assert not found.reliable and not found.softer
    low, high = found.shares
    assert low < found.share < high and high - low > 0.05
    assert found.most == pytest.approx(found.over_skipped.high * (1 + found.floor))


FEW = Times([[x] * 30 for x in (10.0, 10.0, 8.0, 4.0, 2.0)], [])


def whole(inspection, *ms):
    """A reply of the whole batch: the unchanged model twice, and the lossless plan."""
    plan = Plan(assign(inspection.sites, "softmax")[0])
    return Times([[x] * 7 for x in ms], ["", "", plan.hash])


def test_a_few_items_tell_the_ceiling_and_the_whole_batch_its_time(tmp_path):
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store)
        worker = Replies(FEW, whole(inspection, 100.0, 100.0, 82.0))
        latencies = Latencies(inspection, session, worker)
        found = measure_ceiling(latencies, 2)
        assert [(p.items, p.rounds, p.memory) for p in worker.asked] == [
            (2, 7, False),
            (0, 7, False),
        ]
        again = measure_ceiling(Latencies(inspection, session, Replies()), 2)
    assert latencies.items == 2, "what follows is timed so, too"
    assert found.base_ms == again.base_ms == 82.0 and found.softer
    assert (found.ceiling, found.ceiling_skipat) == (2.0, 4.0)


@pytest.mark.parametrize("fails", ["otherwise", "few", "whole"])
def test_where_a_few_items_do_not_stand_for_all_these_are_timed(tmp_path, fails):
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store)
        every = Times([[x] * 30 for x in (100.0, 100.0, 100.0, 40.0, 20.0)], [])
        replies = {
            "otherwise": [FEW, whole(inspection, 100.0, 100.0, 100.0), every],
            "few": [failed("compile_error"), every],
            "whole": [FEW, failed("oom"), every],
        }[fails]
        latencies = Latencies(inspection, session, Replies(*replies))
        found = measure_ceiling(latencies, 2)
    assert latencies.items == 0 and latencies.worker.asked[-1].items == 0
    assert found.base_ms == 100.0 and not found.softer and found.ceiling == 2.5


def test_how_many_items_are_timed(tmp_path, monkeypatch):
    with Store(tmp_path / "a.db") as store:
        inspection, _ = opened(store)
        count = len(inspection.task.example[0])
        assert items_to_time(inspection, 0.4 / count / 2) == 0, "short enough"
        assert items_to_time(inspection, 0.8 / count) == max(1, -(-count // 8))
        assert items_to_time(inspection, 3.0) == 1
        with monkeypatch.context() as changed:
            rows = [(x, y[:-1]) for x, y in inspection.task.validation]
            changed.setattr(inspection.task, "validation", rows)
            assert items_to_time(inspection, 3.0) == 0, "rows that are no items"
        monkeypatch.setattr(inspection.task, "examples", [(inspection.task.example, 1.0)])
        assert items_to_time(inspection, 3.0) == 0, "of several shapes"
