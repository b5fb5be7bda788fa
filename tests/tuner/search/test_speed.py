"""Savings, numbers of threads, and the finalists' latency."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tuning import Replies, failed, opened, pool, series, settings

from attnpass import Plan
from attnpass.errors import MeasureError
from attnpass.plan import assign
from attnpass.store import Store
from attnpass.tuner.measure import Ratio, Times
from attnpass.tuner.search.candidate import Candidate
from attnpass.tuner.search.ceiling import Ceiling
from attnpass.tuner.search.latencies import Latencies
from attnpass.tuner.search.pieces import PieceLibrary
from attnpass.tuner.search.speed import (
    compare_threads,
    measure_finalists,
    measure_savings,
    promise,
)

pytestmark = pytest.mark.usefixtures("little_noise")


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
        assert found.floor == 0
        latencies = replace(latencies, worker=Replies(failed("crashed"), failed("crashed")))
        again = measure_finalists(latencies, made, candidates.keep)
        assert [c.plan.hash for c in again.plans] == hashes, "what failed alone is tried again"
        with pytest.raises(MeasureError, match="got crashed"):
            measure_finalists(latencies, [made[1]], candidates.keep)
        assert latencies.worker.replies == []


def test_finalists_that_the_budget_has_no_time_for_do_not_end_the_run(tmp_path):
    with Store(tmp_path / "a.db") as store:
        candidates = pool(store)
        candidates.session.budget.seconds = 0.0
        sites = candidates.inspection.sites
        made = [Candidate({}, Plan(assign(sites, form)[0]), 0.5) for form in ("hydra", "relu")]
        worker = Replies(failed("timeout"))
        latencies = Latencies(candidates.inspection, candidates.session, worker)
        found = measure_finalists(latencies, made, candidates.keep)
        assert found.plans == [] and found.floor is None and worker.replies == []
        assert candidates.session.budget.cut == ["finalists: 2 of 2 could not be timed"]


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


def ceiling(ms: float = 6.0, most: float = 4.0, **more) -> Ceiling:
    """A made-up ceiling: no plan is faster than ``most``."""
    same, best = Ratio(1, 1, 1, 9), Ratio(most, most, most, 9)
    return Ceiling(ms, False, 0.0, same, best, best, best, best, **more)


def savings(tmp_path, *replies, forms=("hydra", "relu", "skipat r=0"), given=None, db="a.db"):
    """What is found for some choices whose times are given; a number is the plan's, of 2 ms."""
    with Store(tmp_path / db) as store:
        inspection, session = opened(store, forms=forms)
        library = PieceLibrary(inspection)
        library.calibrate(session)
        made = []
        asked = zip(forms, replies, strict=True)
        for choice, reply in sorted(asked, key=lambda row: promise(row[0])):
            hash_ = library.plan(dict.fromkeys(SITES[choice], choice)).hash
            if isinstance(reply, float):
                reply = Times([[2.0] * 30] * 2 + [[reply] * 30], [])
            made += [
                replace(x, hashes=["", "", hash_]) if isinstance(x, Times) else x
                for x in (reply if isinstance(reply, list) else [reply])
            ]
        # all together fail, so that they are taken one after the other
        worker = Replies(failed("crashed"), *made)
        found = measure_savings(
            Latencies(inspection, session, worker), library, given or ceiling()
        )
        assert worker.replies == []
    return found


def test_a_choice_that_cannot_be_measured_or_saves_nothing_is_left_out(tmp_path):
    found = savings(tmp_path, 1.0, failed("compile_error"), 4.0)
    assert found.per_site == {"hydra": 1.0, "skipat r=0": -3.0}
    assert (found.useful, found.slower) == (["hydra"], ["skipat r=0"])
    assert (found.of("relu"), found.of("hydra")) == (0.0, 1.0)
    assert not found.undecided


def test_savings_are_over_the_lossless_plan_where_that_is_the_baseline(tmp_path):
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store, forms=("hydra",))
        library = PieceLibrary(inspection)
        library.calibrate(session)
        exact = Plan(assign(inspection.sites, "softmax")[0]).hash
        plan = library.plan(dict.fromkeys(EVERY, "hydra")).hash
        reply = Times([[8.0] * 30, [8.0] * 30, [4.0] * 30], [exact, exact, plan])
        latencies = Latencies(inspection, session, Replies(reply))
        found = measure_savings(latencies, library, replace(ceiling(8.0), softer=True))
    assert found.per_site == {"hydra": pytest.approx(4.0 / 3)}


def test_choices_are_timed_together_and_stored_one_by_one(tmp_path):
    forms = ("hydra", "relu", "skipat r=0")
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store, forms=forms)
        library = PieceLibrary(inspection)
        library.calibrate(session)
        in_order = ("hydra", "skipat r=0", "relu")  # those that save most first
        hashes = [library.plan(dict.fromkeys(SITES[c], c)).hash for c in in_order]
        times = [[x] * 30 for x in (2.0, 2.0, 1.0, 0.5, 4.0)]
        worker = Replies(Times(times, ["", "", *hashes]))
        found = measure_savings(Latencies(inspection, session, worker), library, ceiling())
        medians = {c: r.median for c, r in found.ratios.items()}
        assert medians == {"hydra": 2.0, "relu": 0.5, "skipat r=0": 4.0}
        again = Latencies(inspection, session, Replies())
        assert measure_savings(again, library, ceiling()) == found, "from the store"
        more = ("hydra", "relu", "skipat r=0", "sigmoid")
        inspection = replace(inspection, settings=settings(forms=more))
        library = PieceLibrary(inspection)
        library.calibrate(session)
        later = Latencies(inspection, session, Replies(None))
        assert measure_savings(later, library, ceiling()).ratios.keys() == {*more}


def test_what_there_is_no_time_for_is_told(tmp_path):
    """Not calibrated yet; two choices fit into the stage, the third does not."""
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store, forms=("hydra", "relu", "skipat r=0"))
        left = iter([9.0, 9.0, 9.0, 9.0, *[0.0] * 20])
        latencies = Latencies(inspection, session, Replies(None), left=lambda: next(left))
        latencies.asked.append((2, 5.0))  # seconds for two plans
        found = measure_savings(latencies, PieceLibrary(inspection), ceiling())
    assert found.ratios.keys() == {"hydra", "skipat r=0"}
    assert session.budget.cut == ["latency per form: relu"]
    assert found.only(["hydra"]).useful == [c for c in found.useful if c == "hydra"]


def test_what_the_ceiling_makes_impossible_is_not_timed(tmp_path):
    least = Ratio(1.001, 1.0, 1.005, 9)
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store, forms=("hydra", "skipat r=0"))
        library = PieceLibrary(inspection)
        library.calibrate(session)
        given = replace(ceiling(), over_bare=least)
        assert [given.allows(f) for f in ("hydra", "relu", "skipat")] == [False, False, True]
        assert replace(given, reliable=False).allows("hydra"), "noise excludes nothing"
        found = measure_savings(Latencies(inspection, session, Replies(None)), library, given)
    assert found.ratios.keys() == {"skipat r=0"} and "hydra" not in found.useful


def unsteady(quicker: float) -> list[Times]:
    """Times that stay noisy: of the unchanged model by half, whose plan is so much quicker."""
    base, again, plan = (series(30, 2.0 / x, 0.5, i) for i, x in enumerate((1, 1, quicker)))
    return [Times([base, again, plan], [])] * 7


def test_noise_excludes_nothing(tmp_path):
    """Perhaps slower, but taken while two identical runs differed much."""
    found = savings(tmp_path, unsteady(0.95), 1.0, 1.99)
    assert found.undecided == ["hydra"] and found.slower == ["skipat r=0"], "1.99 of 2 ms: 0.5 %"
    assert found.useful == ["hydra", "relu"]
    most = found.ratios["hydra"].high
    assert found.of("hydra") == pytest.approx(6.0 * (1 - 1 / most) / 3), "the most it may save"


def test_a_saving_that_the_ceiling_makes_impossible_is_noise(tmp_path):
    found = savings(tmp_path, 0.2, 1.0, 1.0)
    assert found.undecided == ["hydra"], "10x where nothing gains more than 4x"
    assert found.of("hydra") * 3 == pytest.approx(6.0 * (1 - 1 / 4))
    every = ["hydra", "skipat r=0", "skipat r=0", "relu"]
    assert found.left(6.0, every) == found.least_ms == 1.5, "and no plan is faster than that"
    loose = savings(tmp_path, 0.2, 1.0, 1.0, given=ceiling(reliable=False), db="b.db")
    assert not loose.undecided, "a ceiling that is noise itself is none"


@pytest.mark.parametrize(
    ("served", "one", "is_said"),
    [
        ((35.0, 0.0), (39.0, 0.0), False),
        ((35.0, 0.3), (39.0, 0.01), True),  # steadier
        ((35.0, 0.3), (39.0, 0.3), False),
        ((41.0, 0.0), (39.0, 0.0), True),  # no slower
    ],
)
def test_numbers_of_threads_are_compared_once(tmp_path, served, one, is_said, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    said = []
    replies = [
        Times([series(15, *x, 2 * i), series(15, *x, 2 * i + 1)], ["", ""])
        for i, x in enumerate((served, one))
    ]
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store)
        monkeypatch.setattr(session.progress, "say", lambda text, **_: said.append(text))
        latencies = Latencies(inspection, session, Replies(*replies))
        found = compare_threads(latencies, ceiling(38.0))
        assert [(p.rounds, p.threads) for p in latencies.worker.asked] == [(15, 2), (15, 1)]
        assert compare_threads(latencies, ceiling(38.0)) == found, "from the store"
    assert [x.threads for x in found] == [2, 1]
    assert any("OMP_NUM_THREADS=1" in line for line in said) == is_said


def test_one_thread_is_compared_with_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with Store(tmp_path / "a.db") as store:
        assert compare_threads(Latencies(*opened(store), Replies()), ceiling()) == []


def test_threads_that_cannot_be_compared_end_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with Store(tmp_path / "a.db") as store:
        latencies = Latencies(*opened(store), Replies(failed("crashed")))
        assert compare_threads(latencies, ceiling()) == []


EVERY = [f"blocks.{i}.attn" for i in range(3)]
SITES = {"hydra": EVERY, "relu": EVERY, "skipat r=0": EVERY[1:]}


@pytest.mark.parametrize(("whole", "is_left_out"), [(2.0, True), (1.0, False), (None, False)])
def test_what_a_few_items_exclude_is_asked_of_the_whole_batch(tmp_path, whole, is_left_out):
    """A choice that gains nothing with two items; with all of them it takes ``whole`` of 2 ms."""
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store, forms=("hydra",))
        library = PieceLibrary(inspection)
        library.calibrate(session)
        plan = library.plan(dict.fromkeys(EVERY, "hydra")).hash
        few = Times([[2.0] * 30] * 2 + [[2.1] * 30], ["", "", plan])
        every = Times([[2.0] * 7] * 2 + [[whole] * 7], ["", "", plan]) if whole else failed("oom")
        latencies = Latencies(inspection, session, Replies(few, every), items=2)
        found = measure_savings(latencies, library, ceiling())
        asked = latencies.worker.asked
    assert ("hydra" in found.slower) == is_left_out
    assert [p.items for p in asked] == [2, 0] and asked[1].rounds == 7 and latencies.items == 2


def test_finalists_are_timed_as_served(tmp_path):
    with Store(tmp_path / "a.db") as store:
        candidates = pool(store)
        made = Candidate({}, Plan(assign(candidates.inspection.sites, "hydra")[0]), 0.5)
        latencies = Latencies(candidates.inspection, candidates.session, Replies(None), items=2)
        measure_finalists(latencies, [made], candidates.keep)
        assert [p.items for p in latencies.worker.asked] == [0]
