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


def test_they_are_stored_without_their_outcome():
    times = Times([[1.0, 2.0]], ["abc"])
    assert times.outcome == "ok"
    stored = {"times": [[1.0, 2.0]], "hashes": ["abc"], "conditions": {}}
    assert times.as_dict() == stored
    assert Failure("timeout", "late").as_dict() == {"why": "late"}
    assert Failure("oom", "full", "here").as_dict() == {"why": "full", "trace": "here"}
