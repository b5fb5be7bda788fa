"""The messages of the worker: they pickle, and are stored as they were."""

from __future__ import annotations

import pickle

from attnpass.tuner.measure.exchange import (
    CeilingRequest,
    CompileSettings,
    Failure,
    PlansRequest,
    Protocol,
    Times,
)


def test_they_pickle():
    messages = [
        CompileSettings("eager", None, "a.db"),
        PlansRequest((None, "plan.json"), Protocol(30)),
        CeilingRequest(Protocol(30)),
        Times([[1.0]], [""]),
        Failure("oom", "why", "trace"),
    ]
    assert pickle.loads(pickle.dumps(messages)) == messages


def test_rounds_are_added_and_runs_are_picked():
    first = Times([[1.0], [2.0]], ["", "a"], {"load": 1.0}, [[1.0], [2.0]], [3.0, 4.0])
    more = Times([[5.0], [6.0]], ["", "a"], {"load": 2.0}, [[5.0], [6.0]])
    both = first.and_then(more)
    assert both.times == [[1.0, 5.0], [2.0, 6.0]] and both.peaks == [3.0, 4.0]
    assert both.conditions == {"load": 2.0} and both.shapes == [[5.0], [6.0]]
    assert both.only(1).times == [[2.0, 6.0]] and both.only(1).peaks == [4.0]
    assert more.only(1, 1).hashes == ["a", "a"] and more.only(1).peaks == []


def test_they_are_stored_without_their_outcome():
    times = Times([[1.0, 2.0]], ["abc"])
    assert times.outcome == "ok"
    stored = {"times": [[1.0, 2.0]], "hashes": ["abc"], "conditions": {}}
    stored |= {"shapes": [], "peaks": []}
    assert times.as_dict() == stored
    assert Failure("timeout", "late").as_dict() == {"why": "late"}
    assert Failure("oom", "full", "here").as_dict() == {"why": "full", "trace": "here"}
