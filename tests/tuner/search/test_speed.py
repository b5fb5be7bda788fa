"""The baseline and its ceiling, savings, and the finalists' latency."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tuning import Replies, failed, opened, pool

from attnpass import Plan
from attnpass.errors import MeasureError
from attnpass.plan import assign
from attnpass.store import Store
from attnpass.tuner.measure import Times
from attnpass.tuner.search.candidate import Candidate
from attnpass.tuner.search.latencies import Latencies
from attnpass.tuner.search.pieces import PieceLibrary
from attnpass.tuner.search.speed import (
    measure_ceiling,
    measure_finalists,
    measure_savings,
)


def test_a_finalist_that_fails_leaves_the_others(tmp_path):
    with Store(tmp_path / "a.db") as store:
        candidates = pool(store)
        sites = candidates.inspection.sites
        made = [
            Candidate({}, Plan(assign(sites, form)[0]), 0.5)
            for form in ("hydra", "relu", "sigmoid")
        ]
        worker = Replies(failed("crashed"), None, failed("crashed"), None)
        latencies = Latencies(candidates.inspection, candidates.session, worker)
        found = measure_finalists(latencies, made, candidates.keep)
        hashes = [c.plan.hash for c in found.plans]
        assert hashes == [made[0].plan.hash, made[2].plan.hash] and worker.replies == []
        assert list(candidates.tried) == hashes[::-1], "kept at once, the last was timed first"
        assert all(c.latency.ms == 3.0 for c in found.plans)
        assert found.floor > 0
        latencies = replace(latencies, worker=Replies(failed("crashed"), failed("crashed")))
        again = measure_finalists(latencies, made, candidates.keep)
        assert [c.plan.hash for c in again.plans] == hashes, "what failed alone is tried again"
        with pytest.raises(MeasureError, match="got crashed"):
            measure_finalists(latencies, [made[1]], candidates.keep)
        assert latencies.worker.replies == []


def test_finalists_are_timed_beside_the_lossless_plan_where_that_is_a_gain(tmp_path):
    with Store(tmp_path / "a.db") as store:
        candidates = pool(store)
        sites = candidates.inspection.sites
        made = Candidate({}, Plan(assign(sites, "hydra")[0]), 0.5)
        exact = Plan(assign(sites, "softmax")[0]).hash
        rounds = candidates.inspection.settings.limits["rounds"]
        times = [[x] * rounds for x in (10.0, 10.0, 8.0, 4.0)]
        worker = Replies(Times(times, ["", "", exact, made.plan.hash]))
        latencies = Latencies(candidates.inspection, candidates.session, worker)
        (found,) = measure_finalists(latencies, [made], candidates.keep, lossless=True).plans
    assert (found.latency.ratio.median, found.latency.over_lossless.median) == (2.5, 2.0)
    assert found.latency.least == 2.0, "of the faster of both"


def test_no_finalists_take_no_time(tmp_path):
    with Store(tmp_path / "a.db") as store:
        latencies = Latencies(*opened(store), Replies())
        assert measure_finalists(latencies, [], lambda c: None).floor is None


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


def test_a_choice_that_cannot_be_measured_or_saves_nothing_is_left_out(tmp_path):
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store, forms=("hydra", "relu", "skipat r=0"))
        library = PieceLibrary(inspection)
        library.calibrate(session)
        hashes = [library.plan(dict.fromkeys(n, c)).hash for c, n in SITES.items()]
        replies = (
            Times([[2.0] * 9, [1.0] * 9], ["", hashes[0]]),
            failed("compile_error"),
            Times([[1.0] * 9, [2.0] * 9], ["", hashes[2]]),
        )
        found = measure_savings(Latencies(inspection, session, Replies(*replies)), library, 6.0)
    assert found.per_site == {"hydra": 1.0, "skipat r=0": -3.0}
    assert (found.useful, found.slower) == (["hydra"], ["skipat r=0"])
    assert (found.of("relu"), found.of("hydra")) == (0.0, 1.0)


EVERY = [f"blocks.{i}.attn" for i in range(3)]
SITES = {"hydra": EVERY, "relu": EVERY, "skipat r=0": EVERY[1:]}
