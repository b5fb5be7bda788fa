"""Latencies come from the store, a failure only where it would end the same way."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace

import pytest
from tuning import Replies, failed, opened, settings

from attnpass import Plan
from attnpass.errors import MeasureError
from attnpass.plan import assign
from attnpass.store import Store
from attnpass.tuner.measure import Times
from attnpass.tuner.search.latencies import Latencies, plans_folder


def test_a_stored_failure_is_tried_again_where_it_may_end_otherwise(tmp_path):
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store)

        def by(*replies, **more) -> Latencies:
            asked = replace(inspection, settings=settings(**more))
            return Latencies(asked, session, Replies(*replies))

        latencies = by(failed("timeout"), Times([[1.0]] * 5, []))
        with pytest.raises(MeasureError, match="to measure ceiling, got timeout: no luck"):
            latencies.ceiling()
        assert latencies.ceiling() == [[1.0]] * 5, "the run needs it"
        for outcome in ("crashed", "timeout"):
            latencies = by(failed(outcome))
            for _ in range(2):  # the second is the stored one
                with pytest.raises(MeasureError, match=f"got {outcome}"):
                    latencies.times(outcome, [None], spare=True)
            assert latencies.worker.replies == []
        latencies = by(None, timeout=1800.0)
        with pytest.raises(MeasureError, match="got crashed"):
            latencies.times("crashed", [None], spare=True)
        assert latencies.times("timeout", [None], spare=True) == [[1.0] * 30]


def test_times_of_another_plan_are_a_failure(tmp_path):
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store)
        plan = Plan(assign(inspection.sites, "hydra")[0])
        wrong = Times([[1.0]], ["another"])
        latencies = Latencies(inspection, session, Replies(wrong, None))
        with pytest.raises(MeasureError, match="another plan ran than was asked for"):
            latencies.times("a", [plan])
        assert latencies.times("a", [plan]) == [[1.0] * 30]


def test_the_plans_of_a_process_that_was_killed_are_removed(tmp_path):
    db = tmp_path / "a[1].db"
    child = subprocess.Popen(["true"])
    child.wait()
    left, kept = (tmp_path / f"a[1].db.{i}.plans" for i in (child.pid, os.getppid()))
    other = tmp_path / f"a1.db.{child.pid}.plans"
    for folder in (left, kept, other):
        folder.mkdir()
    with plans_folder(db) as folder:
        (folder / "0.json").write_text("{}")
        assert folder.parent == tmp_path and not left.exists()
        assert kept.exists() and other.exists(), "of a process that runs, of another database"
    assert not folder.exists()


@pytest.mark.parametrize("times", [[], [[1.0]], [[1.0] * 30] * 2, [[1.0] * 29], [[0.0] * 30]])
def test_times_of_another_number_are_taken_again(tmp_path, times):
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store)
        session.keep("latency", "x", inspection.timing, {"times": times, "hashes": [""]})
        latencies = Latencies(inspection, session, Replies(None))
        assert latencies.times("x", [None]) == [[1.0] * 30]
        assert latencies.times("x", [None]) == [[1.0] * 30] and latencies.worker.replies == []
