"""Interleaved times of the plans of one run, from the store or from the worker."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from attnpass.errors import MeasureError
from attnpass.plan import Plan
from attnpass.tuner.measure import Failure, Reply, Worker
from attnpass.tuner.search.inspection import Inspection
from attnpass.tuner.search.session import Session, Value


@contextmanager
def plans_folder(db: Path) -> Iterator[Path]:
    """A folder beside the database for plans that the worker reads, gone afterwards.

    Folders of processes that were killed are removed first: their names hold the process id.
    """
    for old in db.parent.glob(f"{escape(db.name)}.*.plans"):
        number = old.name.split(".")[-2]
        if number.isdigit() and not _runs(int(number)):
            shutil.rmtree(old, ignore_errors=True)
    folder = db.with_name(f"{db.name}.{os.getpid()}.plans")
    folder.mkdir(exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _runs(process: int) -> bool:
    """Whether a process is alive."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@dataclass(frozen=True, eq=False)
class Latencies:
    """Where a run takes its latencies from: the store, else the worker."""

    inspection: Inspection
    session: Session
    worker: Worker

    def ceiling(self) -> list[list[float]]:
        """The five series of ``Worker.ceiling``.

        Raises:
            MeasureError: the worker could not measure.
        """
        return self._times("ceiling", "ceiling", None, spare=False)

    def times(
        self, subject: str, plans: Sequence[Plan | None], *, spare: bool = False
    ) -> list[list[float]]:
        """Milliseconds of each plan per round; None is the unchanged model.

        A stored failure is tried again where the run cannot ``spare`` these times, or waits
        longer now.

        Raises:
            MeasureError: the worker could not measure.
        """
        return self._times("latency", subject, plans, spare=spare)

    def _times(
        self, kind: str, subject: str, plans: Sequence[Plan | None] | None, *, spare: bool
    ) -> list[list[float]]:
        session, timing = self.session, self.inspection.timing
        rounds = self.inspection.settings.limits["rounds"]
        runs = 5 if plans is None else len(plans)

        def fits(value: Value) -> bool:
            return [len(x) for x in value.get("times", [[0] * rounds] * runs)] == [rounds] * runs

        value = session.find(kind, subject, timing, fits=fits)
        if value is not None and self._again(value, spare):
            value = None
        if value is None:
            reply = self._ask(plans)
            value = reply.as_dict() | {"limit": self.inspection.settings.timeout}
            session.keep(kind, subject, timing, value, outcome=reply.outcome)
            value = session.find(kind, subject, timing, fresh=True) or value
        if value.get("outcome", "ok") != "ok":
            raise MeasureError(
                f"expected to measure {subject}, got {value['outcome']}: {value.get('why')}"
            )
        times: list[list[float]] = value["times"]
        return times

    def _again(self, value: Value, spare: bool) -> bool:
        """Whether a stored failure may end otherwise, or must."""
        if value.get("outcome", "ok") == "ok":
            return False
        timeout = self.inspection.settings.timeout
        slow = value["outcome"] == "timeout" and value["limit"] < timeout
        return not spare or slow or value["outcome"] == "killed"

    def _ask(self, plans: Sequence[Plan | None] | None) -> Reply:
        rounds = self.inspection.settings.limits["rounds"]
        if plans is None:
            return self.worker.ceiling(rounds=rounds)
        with plans_folder(self.session.store.path) as folder:
            files = [
                None if p is None else str(p.save(folder / f"{i}.json"))
                for i, p in enumerate(plans)
            ]
            reply = self.worker.measure(files, rounds=rounds)
        expected = ["" if p is None else p.hash for p in plans]
        if not isinstance(reply, Failure) and reply.hashes != expected:
            return Failure("inaccurate", "another plan ran than was asked for")
        return reply
