"""Observers are told of plans and of the end; one that fails is left out, with one line."""

from __future__ import annotations

from tuning import pool

from attnpass.store import Store
from attnpass.tuner.search.observers import Observers, first_line


class Heard:
    """An observer that keeps what it is told, and fails at some call."""

    name = "--heard"

    def __init__(self, fails_at: int = -1) -> None:
        self.calls, self.fails_at = [], fails_at

    def judged(self, row) -> None:
        self._take(row)

    def finished(self, result, files) -> None:
        self._take((result, files))

    def _take(self, what) -> None:
        self.calls.append(what)
        if len(self.calls) == self.fails_at:
            raise OSError("disk full\nand a second line")


def test_all_are_told_and_the_one_that_fails_no_more():
    said, good, bad = [], Heard(), Heard(fails_at=2)
    observers = Observers([bad, good], said.append)
    observers.judged("a")
    observers.judged("b")
    observers.judged("c")
    observers.finished("result", {"plan": "plan.json"})
    assert good.calls == ["a", "b", "c", ("result", {"plan": "plan.json"})]
    assert bad.calls == ["a", "b"]
    assert said == ["--heard failed, the run goes on without it: OSError: disk full"]


def test_an_error_without_a_message_is_its_kind():
    assert first_line(ValueError()) == "ValueError" and first_line(ValueError("\n x")).endswith(
        "x"
    )


def test_candidates_tell_every_plan_once(tmp_path):
    heard = Heard()
    with Store(tmp_path / "a.db") as store:
        candidates = pool(store)
        candidates.library.calibrate(candidates.session)
        candidates.session.observers = Observers([heard])
        for _ in range(2):
            found = candidates.of({"blocks.0.attn": "hydra"})
    (row,) = heard.calls
    assert row.plan == found.plan.hash and row.forms == found.assignment
    assert row.selection is found.selection
