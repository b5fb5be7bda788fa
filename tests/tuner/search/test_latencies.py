"""Latencies come from the store, a failure only where it would end the same way."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from scripts import scale
from tuning import Replies, failed, opened, series, settings

from attnpass import Plan
from attnpass.errors import MeasureError
from attnpass.plan import assign
from attnpass.store import Store
from attnpass.tuner.measure import Lost, Pool, Times
from attnpass.tuner.search.budget import Budget
from attnpass.tuner.search.latencies import LEAST_PATIENCE, OVER, Latencies
from attnpass.tuner.search.timed import Timed

pytestmark = pytest.mark.usefixtures("little_noise")


def test_a_stored_failure_is_tried_again_where_it_may_end_otherwise(tmp_path):
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store)

        def by(*replies, **more) -> Latencies:
            asked = replace(inspection, settings=settings(**more))
            return Latencies(asked, session, Replies(*replies))

        latencies = by(failed("timeout"), Times([[1.0] * 30] * 5, []))
        with pytest.raises(MeasureError, match="to measure ceiling, got timeout: no luck"):
            latencies.ceiling()
        assert latencies.ceiling().times == [[1.0] * 30] * 5, "the run needs it"
        for outcome in ("crashed", "timeout"):
            latencies = by(failed(outcome))
            for _ in range(2):  # the second is the stored one
                with pytest.raises(MeasureError, match=f"got {outcome}"):
                    latencies.times(outcome, [None], spare=True)
            assert latencies.worker.replies == []
        latencies = by(None, timeout=1800.0)
        with pytest.raises(MeasureError, match="got crashed"):
            latencies.times("crashed", [None], spare=True)
        assert latencies.times("timeout", [None], spare=True).times == [[1.0] * 30]


def test_times_of_another_plan_are_a_failure(tmp_path):
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store)
        plan = Plan(assign(inspection.sites, "hydra")[0])
        wrong = Times([[1.0]], ["another"])
        latencies = Latencies(inspection, session, Replies(wrong, None))
        with pytest.raises(MeasureError, match="another plan ran than was asked for"):
            latencies.times("a", [plan])
        assert latencies.times("a", [plan]).times == [[1.0] * 30]


@pytest.mark.parametrize("times", [[], [[1.0]], [[1.0] * 30] * 2, [[1.0] * 6], [[0.0] * 30]])
def test_times_of_another_number_are_taken_again(tmp_path, times):
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store)
        session.keep("latency", "x", inspection.timing, {"times": times, "hashes": [""]})
        latencies = Latencies(inspection, session, Replies(None))
        assert latencies.times("x", [None]).times == [[1.0] * 30]
        assert latencies.times("x", [None]).times == [[1.0] * 30]
        assert latencies.worker.replies == []


def noisy(rounds: int, spread: float, *more: float) -> Times:
    """The unchanged model twice, whose two series differ, and other models."""
    twins = [series(rounds, 10.0, spread, seed) for seed in (1, 2)]
    return Times([*twins, *([x] * rounds for x in more)], ["", ""])


def test_noisy_times_are_taken_again_until_they_are_steady(tmp_path):
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store)
        looks = [noisy(n, 0.5) for n in (7, 7, 16, 7, 7, 14, 32)]
        worker = Replies(*looks, noisy(60, 0.01))
        found = Latencies(inspection, session, worker).times("x", [None, None])
        assert found.reliable and len(found.times[0]) == 60
        steps = [(p.rounds, p.threads, p.pinned) for p in worker.asked]
        first = [(n, 0, False) for n in (7, 7, 16)]
        more = [(n, 0, False) for n in (7, 7, 14, 32)]
        assert steps == [*first, *more, (7, 1, False)], "no more rounds than the noise asks for"
        again = Latencies(inspection, session, Replies()).times("x", [None, None])
        assert again == found, "from the store"


def test_without_time_left_choices_are_left_out_but_those_that_are_stored(tmp_path):
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store)
        plans = {f: Plan(assign(inspection.sites, f)[0]) for f in ("hydra", "relu")}
        known = Latencies(inspection, session, Replies(None))
        known.times("hydra", [None, None, plans["hydra"]])
        late = Latencies(inspection, session, Replies(), left=lambda: 0.0)
        found = dict(late.each(plans, None))
        assert isinstance(found["hydra"], Timed)
        assert str(found["relu"]) == "expected time left in the budget, got none"


def test_what_follows_is_taken_as_what_was_steady(tmp_path):
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store)
        looks = [noisy(30, 0.5), *[noisy(30, 0.5)] * 2, noisy(60, 0.0)]
        worker = Replies(*looks, noisy(60, 0.0))
        latencies = Latencies(inspection, session, worker)
        latencies.times("x", [None, None])
        latencies.times("y", [None, None])
        assert [p.threads for p in worker.asked] == [0, 0, 0, 1, 1]


def test_times_that_stay_noisy_are_unreliable_and_never_served(tmp_path):
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store)
        worker = Replies(*(noisy(60, s) for s in (1.0, 0.8, 0.4, 0.6)))
        found = Latencies(inspection, session, worker).times("x", [None, None])
        assert not found.reliable and worker.replies == [] and worker.asked[-1].pinned
        assert found.times == noisy(60, 0.4).times, "the steadiest of all is kept"
        quiet = Replies(noisy(30, 0.0))
        assert Latencies(inspection, session, quiet).times("x", [None, None]).reliable
        assert quiet.replies == [], "what was unreliable is measured again"


def test_a_failure_on_the_way_leaves_what_was_measured(tmp_path):
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store)
        worker = Replies(noisy(30, 0.5), failed("timeout"))
        found = Latencies(inspection, session, worker).times("x", [None, None])
        assert not found.reliable and len(found.times[0]) == 30


def aged(store: Store, inspection, session, kind: str, subject: str) -> None:
    """Make a stored measurement two hours old."""
    value = session.find(kind, subject, inspection.timing)
    session.keep(kind, subject, inspection.timing, value | {"taken": time.time() - 7200})


def test_old_times_that_decide_are_run_again_shortly(tmp_path):
    plan = None
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store)
        plan = Plan(assign(inspection.sites, "hydra")[0])

        def by(*replies) -> Latencies:
            return Latencies(inspection, session, Replies(*replies))

        def reply(rounds: int, ms: float, quicker: float) -> Times:
            return Times([[ms] * rounds] * 2 + [[ms / quicker] * rounds], ["", "", plan.hash])

        given = ("finalists", [None, None, plan])
        first = by(reply(30, 10.0, 2.0)).times(*given, decides=True)
        assert by().times(*given, decides=True) == first, "taken just now"
        aged(store, inspection, session, "latency", "finalists")
        assert by().times(*given) == first, "decides nothing"
        same = by(reply(7, 11.0, 1.95))
        assert same.times(*given, decides=True) == first and not same.stale
        assert [p.rounds for p in same.worker.asked] == [7]
        for short in (reply(7, 39.0, 2.0), reply(7, 10.0, 1.2), failed("crashed")):
            aged(store, inspection, session, "latency", "finalists")
            changed = by(short, reply(30, 39.0, 1.1))
            found = changed.times(*given, decides=True)
            assert found.times[0][0] == 39.0 and changed.worker.replies == []
            assert changed.stale == isinstance(short, Times)
            session.keep(
                "latency",
                "finalists",
                inspection.timing,
                reply(30, 10.0, 2.0).as_dict() | {"taken": time.time() - 7200},
            )


def test_where_stored_times_are_not_those_of_now_none_is_believed(tmp_path):
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store)
        first = Latencies(inspection, session, Replies(None)).times("other", [None])
        latencies = Latencies(inspection, session, Replies(None))
        assert latencies.times("other", [None]) == first and len(latencies.worker.replies) == 1
        latencies.stale = True
        for _ in range(2):  # what the run itself has measured is of now
            latencies.times("other", [None])
        assert latencies.worker.replies == []


def pool_of(hashes: dict, *faults) -> Pool:
    """Three simulated workers that time any plan; ``faults`` are the first answers."""
    clock, left = scale.Clock(), list(faults)

    def answers(request):
        if left:
            return 5.0, left.pop(0)
        rounds = request.protocol.rounds
        told = ["" if p is None else hashes[p.plan().hash] for p in request.plans]
        return 10.0, Times([[2.0] * rounds, [2.0] * rounds, [1.0] * rounds], told)

    return Pool([scale.SimulatedWorker(str(i), clock, answers) for i in range(3)], inbox=clock)


def test_a_pool_takes_independent_measurements_at_once_and_each_is_kept_once(tmp_path):
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store)
        made = [Plan(assign(inspection.sites, form)[0]) for form in ("hydra", "relu", "sigmoid")]
        wanted = {p.hash: [None, None, p] for p in made}
        kept, keep = [], session.keep
        session.keep = lambda kind, subject, *x, **y: (
            kept.append(subject) or keep(kind, subject, *x, **y)
        )
        pool = pool_of({p.hash: p.hash for p in made}, Lost("no actor"), failed("oom"))
        latencies = Latencies(inspection, session, pool)
        assert latencies.workers == 3
        latencies.take_ahead(wanted)
        assert sorted(kept) == sorted(wanted) and pool.inbox.time < 40
        outcomes = []
        for subject, plans in wanted.items():
            try:
                outcomes.append(latencies.times(subject, plans, spare=True).times[2][0])
            except MeasureError as error:
                outcomes.append(str(error))
        assert sorted(map(str, outcomes))[:2] == ["1.0", "1.0"]
        assert "got oom: no luck" in str(outcomes) and len(kept) == 3
        again = Latencies(inspection, session, pool_of({}))
        again.take_ahead(wanted)
        assert again.worker.counts["sent"] == 0 and len(kept) == 3, "all is stored"


def test_a_worker_that_ran_another_plan_is_not_believed(tmp_path):
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store)
        plan = Plan(assign(inspection.sites, "hydra")[0])
        latencies = Latencies(inspection, session, pool_of({plan.hash: "another"}))
        latencies.take_ahead({"a": [None, None, plan]})
        with pytest.raises(MeasureError, match="another plan ran than was asked for"):
            latencies.times("a", [None, None, plan])


def test_one_worker_takes_nothing_ahead(tmp_path):
    with Store(tmp_path / "a.db") as store:
        latencies = Latencies(*opened(store), Replies())
        latencies.take_ahead({"a": [None]})
        assert latencies.taken == set() and latencies.workers == 1


def test_the_looks_there_are_count_where_the_next_one_is_too_late(tmp_path):
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store)
        first = noisy(7, 0.5)
        left = iter([5.0, 0.0])
        latencies = Latencies(inspection, session, Replies(first, failed("timeout")))
        latencies.left = lambda: next(left)
        assert latencies.times("x", [None, None]).times == first.times
        latencies = Latencies(inspection, session, Replies(first, failed("crashed")))
        with pytest.raises(MeasureError, match="got crashed"):
            latencies.times("y", [None, None])


def test_a_request_is_waited_for_little_beyond_the_budget(tmp_path):
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store)
        latencies = Latencies(inspection, session, Replies())
        assert latencies.patience == inspection.settings.timeout, "without a budget"
        clock = [0.0]
        session.budget = Budget(500.0, lambda: clock[0])
        assert latencies.patience == pytest.approx(500 * (1 + OVER))
        clock[0] = 510.0
        assert latencies.patience == pytest.approx(500 * OVER - 10)
        clock[0] = 600.0
        assert latencies.patience == LEAST_PATIENCE
