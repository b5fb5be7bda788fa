"""Latencies come from the store, a failure only where it would end the same way."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tuning import Replies, failed, opened, settings

from attnpass import Plan
from attnpass.errors import MeasureError
from attnpass.plan import assign
from attnpass.store import Store
from attnpass.tuner.measure import Times
from attnpass.tuner.search.latencies import Latencies


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
        assert latencies.times("timeout", [None], spare=True) == [[1.0] * 9]


def test_times_of_another_plan_are_a_failure(tmp_path):
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store)
        plan = Plan(assign(inspection.sites, "hydra")[0])
        wrong = Times([[1.0]], ["another"])
        latencies = Latencies(inspection, session, Replies(wrong, None))
        with pytest.raises(MeasureError, match="another plan ran than was asked for"):
            latencies.times("a", [plan])
        assert latencies.times("a", [plan]) == [[1.0] * 9]
