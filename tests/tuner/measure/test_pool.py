"""A pool: every request ends in one reply, whatever becomes of its workers. Time is simulated."""

from __future__ import annotations

import math
from itertools import count

import pytest
from scripts import scale

from attnpass.tuner.measure import Failure, Lost, PackedRequest, Pool, Protocol, Times
from attnpass.tuner.measure.pool import GRACE
from attnpass.tuner.measure.worker import ATTEMPTS

OK = Times([[1.0]], [""])
ASK = PackedRequest(Protocol(1))


def made(*workers, **more) -> Pool:
    """A pool whose workers each give (seconds, answer), the last one again and again."""
    clock = scale.Clock()

    def worker(name, answers):
        left = list(answers)
        take = lambda _: left.pop(0) if len(left) > 1 else left[0]  # noqa: E731
        return scale.SimulatedWorker(name, clock, take)

    found = [worker(str(i), answers) for i, answers in enumerate(workers)]
    return Pool(found, inbox=clock, timeout=more.pop("timeout", 100.0), **more)


def job(requests: int = 1):
    replies = []
    for _ in range(requests):
        replies.append((yield ASK))
    return replies


def jobs(number: int):
    return {i: job() for i in range(number)}


def gathered(pool: Pool, number: int) -> dict:
    """The reply to each of so many jobs, and that no job ended twice."""
    found = list(pool.gather(jobs(number)))
    assert sorted(key for key, _ in found) == list(range(number))
    return {key: reply for key, (reply,) in found}


def names(pool: Pool) -> list[str]:
    return [w.name for w in pool.workers]


def test_workers_measure_at_once():
    pool = made([(10.0, OK)], [(10.0, OK)], [(10.0, OK)])
    assert [*gathered(pool, 6).values()] == [OK] * 6
    assert 20 <= pool.inbox.time < 40 and pool.counts["copies"] == 0


def test_what_takes_long_is_asked_of_an_idle_worker_and_counts_once():
    late = Times([[9.0]], ["late"])
    pool = made([(10.0, OK)], [(95.0, late)])
    assert [*gathered(pool, 3).values()] == [OK] * 3
    assert pool.inbox.time < 40 and pool.counts["copies"] == 1
    assert [w.name for w in pool.idle] == ["0"], "the other still measures"
    assert [*gathered(pool, 12).values()] == [OK] * 12
    assert pool.counts["dropped"] == 1, "the late reply belongs to no job"


def test_what_has_to_compile_is_not_late_beside_what_goes_on():
    looks = [(30.0, OK), (1.0, OK), (1.0, OK), (1.0, OK)]
    pool = made([*looks, *looks, (30.0, OK)], [*looks, (30.0, OK)])
    found = dict(pool.gather({i: job(4) for i in range(3)}))
    assert len(found) == 3 and pool.counts["copies"] == 0, "30 s are usual for a first look"


def test_a_request_whose_worker_is_lost_is_asked_again():
    said = []
    pool = made([(10.0, OK)], [(5.0, Lost("no actor"))], say=said.append)
    first = [*pool.workers]
    assert [*gathered(pool, 9).values()] == [OK] * 9
    assert names(pool) == ["0"] and said == ["worker 1 is lost: no actor"]
    assert first[1].restarts == ATTEMPTS - 1 and first[1].closed


def test_a_worker_that_comes_back_stays():
    pool = made([(5.0, Lost("no actor")), (5.0, OK), (5.0, Lost("no actor")), (5.0, OK)])
    assert [*gathered(pool, 4).values()] == [OK] * 4
    assert names(pool) == ["0"] and pool.counts["lost"] == 2


def test_a_request_that_takes_workers_with_it_ends_as_killed():
    pool = made([(1.0, Lost("gone"))] * 9, [(1.0, Lost("gone"))] * 9)
    found = gathered(pool, 3)
    assert {x.outcome for x in found.values()} == {"killed"}
    assert names(pool) == [] and found[2].why in ("gone", "no worker is left")


@pytest.mark.parametrize("outcome", ["compile_error", "oom", "crashed", "killed", "timeout"])
def test_a_failure_is_the_reply(outcome):
    bad = Failure(outcome, "no luck")
    pool = made([(10.0, bad), (10.0, OK)])
    assert [*gathered(pool, 2).values()] == [bad, OK] and pool.counts["sent"] == 2


def test_a_timeout_does_not_count_while_another_worker_is_at_it():
    pool = made([(10.0, OK), (10.0, OK), (60.0, OK)], [(50.0, Failure("timeout", "late"))])
    assert [*gathered(pool, 3).values()] == [OK] * 3
    assert pool.counts["dropped"] == 1


def test_a_third_worker_is_asked_where_the_second_takes_as_long():
    hangs = (90.0, Failure("timeout", "late"))
    pool = made([(10.0, OK), hangs], [(10.0, OK), hangs], [(10.0, OK)])
    assert [*gathered(pool, 4).values()] == [OK] * 4
    assert pool.inbox.time < 90 and pool.counts["copies"] == 2


def test_another_worker_is_asked_where_the_second_is_lost():
    hangs = (90.0, Failure("timeout", "late"))
    pool = made([(10.0, OK), hangs], [(10.0, OK), (5.0, Lost("gone"))], [(10.0, OK)])
    assert [*gathered(pool, 4).values()] == [OK] * 4
    assert pool.inbox.time < 90 and pool.counts["copies"] == 2


def test_no_more_than_three_workers_are_asked_the_same():
    hangs = (90.0, Failure("timeout", "late"))
    pool = made(*([(10.0, OK), hangs] for _ in range(6)))
    found = gathered(pool, 7)
    assert found[6] == hangs[1] and pool.counts["copies"] == 2


def test_a_worker_that_never_answers_is_started_anew():
    pool = made([(math.inf, OK), (10.0, OK)])
    (worker,) = pool.workers
    found = gathered(pool, 2)
    assert found[0] == Failure("timeout", f"no answer in {100 + GRACE:.0f} s")
    assert found[1] == OK and worker.restarts == 1


def test_a_stop_ends_the_wait_and_what_comes_later_is_dropped():
    asked = count()
    pool = made([(10.0, Times([[9.0]], ["old"])), (10.0, OK)], stopped=lambda: next(asked) > 2)
    with pytest.raises(KeyboardInterrupt):
        gathered(pool, 1)
    pool.stopped = lambda: False
    assert gathered(pool, 1) == {0: OK} and pool.counts["dropped"] == 1


def test_a_job_goes_on_with_the_worker_that_it_had():
    pool = made([(10.0, Times([[1.0]], ["a"]))], [(11.0, Times([[1.0]], ["b"]))])
    found = dict(pool.gather({i: job(3) for i in range(2)}))
    assert [[r.hashes for r in x] for x in found.values()] == [[["a"]] * 3, [["b"]] * 3]


def test_a_pool_is_asked_like_one_worker():
    requests = []

    def answers(request):
        requests.append(request)
        return 1.0, OK

    clock = scale.Clock()
    with Pool([scale.SimulatedWorker("0", clock, answers, {"isa": "AVX2"})], inbox=clock) as pool:
        assert pool.device == {"isa": "AVX2"}
        assert pool.ceiling(Protocol(2)) == pool.measure([None, None], Protocol(3)) == OK
        (worker,) = pool.workers
    assert requests == [PackedRequest(Protocol(2)), PackedRequest(Protocol(3), (None, None))]
    assert worker.closed and names(pool) == []
