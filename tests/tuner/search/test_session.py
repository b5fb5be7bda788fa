"""Stored measurements: hits, misses with a reason, refresh, and the request to stop."""

from __future__ import annotations

import os
import signal

import pytest
from tuning import QUIET

from attnpass.plan import Entry, Plan
from attnpass.store import Store, key_of
from attnpass.tuner.search.session import STOPS, Session, StopRequest


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "a.db") as opened:
        yield opened


def test_a_measurement_is_taken_once(store):
    session, taken = Session("r", store, QUIET), []
    for _ in range(2):
        value = session.measured("k", "s", {"a": 1}, lambda: taken.append(1) or {"x": 2})
        assert value["x"] == 2
    assert taken == [1]


def test_refresh_takes_it_again_and_reads_what_it_took(store):
    Session("r", store, QUIET).keep("k", "s", {}, {"x": 1})
    session = Session("r", store, QUIET, refresh=True)
    assert session.find("k", "s", {}) is None
    assert session.measured("k", "s", {}, lambda: {"x": 2}) == {"x": 2}
    assert session.find("k", "s", {}, fresh=True) == {"x": 2, "outcome": "ok"}


def test_a_near_hit_says_once_which_field_differs(store, monkeypatch):
    session, said = Session("r", store, QUIET), []
    monkeypatch.setattr(session.progress, "say", lambda text, style: said.append(text))
    session.keep("k", "s", {"a": 1}, {})
    for _ in range(2):
        assert session.find("k", "s", {"a": 2}) is None
    assert session.find("k", "other", {"a": 2}) is None
    key = key_of("k", "s", {"a": 1})[:12]
    assert said == [f"measuring again what is stored: a changed (attnpass results --why {key})"]


def test_what_rests_on_a_baseline_is_found_with_it_alone(store, monkeypatch):
    session, said = Session("r", store, QUIET), []
    monkeypatch.setattr(session.progress, "say", said.append)
    session.rest_on("one")
    session.keep("k", "s", {"a": 1}, {"x": 2})
    assert session.find("k", "s", {"a": 1}) is not None
    for other in ("", "two"):
        session.rest_on(other)
        assert session.find("k", "s", {"a": 1}) is None
    assert said == [], "the reason is that of the baseline"
    session.rest_on("one")
    assert session.find("k", "s", {"a": 1}) is not None


def test_a_run_that_is_to_stop_looks_nothing_up(store):
    session = Session("r", store, QUIET)
    session.stop.requested = True
    with pytest.raises(KeyboardInterrupt):
        session.find("k", "s", {})


def test_ctrl_c_asks_first_and_a_second_one_ends_at_once():
    stop, before = StopRequest(), signal.getsignal(signal.SIGINT)
    with stop.handled():
        stop.check()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number", STOPS)
def test_each_signal_stops_as_ctrl_c_does_unless_it_is_ignored(number):
    stop = StopRequest()
    with stop.handled():
        os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            stop.check()
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopRequest().handled():
            assert signal.getsignal(number) == signal.SIG_IGN, "as nohup asks"
    finally:
        signal.signal(number, before)


def test_a_stored_plan_that_is_damaged_is_a_miss_that_says_why(store, monkeypatch):
    session, said = Session("r", store, QUIET), []
    monkeypatch.setattr(session.progress, "say", lambda text, style: said.append(text))
    name = store.save_plan(Plan({"a": Entry("hydra")}))
    assert session.plan(name).hash == name and session.plan("none") is None and said == []
    with store.transaction():
        store.db.execute("UPDATE plans SET document = '{'")
    assert session.plan(name) is None
    (line,) = said
    assert line.startswith(f"making again what is stored: expected plan {name}")
