"""A damaged row of the database is a miss, and a damaged result one line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pytest
from tuning import QUIET

from attnpass.errors import StoreError
from attnpass.store import Store
from attnpass.tuner.measure import Ratio
from attnpass.tuner.search.session import Session
from attnpass.tuner.search.stored import conforms, read_result, whole

WHOLE = {
    "accuracy": [
        {"scores": [1.0, 0.5]},
        {"scores": [1.0, 0.5], "complete": True},
        {
            "sizes": [1, 2],
            "selection": [1.0],
            "held_out": [0.0, 1.0],
            "canary": {"batches": [0], "scores": [1.0], "noise": 1e-6},
            "random": False,
            "mark": "m",
            "read": {"a.txt": "cafe"},
        },
    ],
    "divergence": [{"divergence": 0.5}],
    "latency": [
        {"times": [[1.0, 2.0]], "hashes": [""], "outcome": "ok"},
        {"outcome": "timeout", "why": "slow", "limit": 9.0},
    ],
    "ceiling": [{"times": [[1.0]] * 5, "hashes": [], "outcome": "ok"}],
    "bank": [{"plan": "cafe", "losses": {"a": 0.1}, "steps": 3, "seconds": 1.0}],
    "recovered": [{"plan": "cafe", "steps": 3, "seconds": 1.0, "more": "kept"}],
}
BROKEN = [None, "x", [], {}, [None], [["x"]], -1.0, float("nan"), True]
CASES = [(kind, value) for kind, values in WHOLE.items() for value in values]


@pytest.mark.parametrize(("kind", "value"), CASES)
def test_a_whole_measurement_is_taken_and_each_broken_field_is_not(kind, value):
    assert whole(kind, value)
    for name in value:
        if name in ("outcome", "more"):
            continue
        less = {k: v for k, v in value.items() if k != name}
        assert not whole(kind, less) or name == "complete", name
        good = {type(value[name])}
        for broken in BROKEN:
            # another value of the same type may be right
            if (
                type(broken) in good
                and broken == broken
                and broken != [None]
                and broken != [["x"]]
            ):
                continue
            if name in ("divergence", "limit", "seconds") and broken == -1.0:
                continue
            assert not whole(kind, {**value, name: broken}), (name, broken)


def test_times_of_zero_are_damaged():
    assert not whole("latency", {"times": [[0.0]], "hashes": [""]})


@pytest.mark.parametrize("text", ["{}", "[]", "3", '{"times": []}', "{", "null", "[" * 10**5])
def test_a_damaged_row_is_measured_again_and_said(tmp_path, text, monkeypatch):
    said = []
    with Store(tmp_path / "a.db") as store:
        session = Session("r", store, QUIET)
        monkeypatch.setattr(QUIET, "say", lambda line, style: said.append(line))
        session.keep("divergence", "p", {}, {"divergence": 1.0})
        store.db.execute("UPDATE measurements SET value = ?", [text])
        found = session.measured("divergence", "p", {}, lambda: {"divergence": 2.0})
        assert found == {"divergence": 2.0}
        assert session.find("divergence", "p", {})["divergence"] == 2.0
    (line,) = said
    assert "measuring again what is stored" in line and ("damaged" in line or "corrupt" in line)


def test_what_does_not_fit_is_a_miss(tmp_path):
    with Store(tmp_path / "a.db") as store:
        session = Session("r", store, QUIET)
        session.keep("divergence", "p", {}, {"divergence": 1.0})
        assert session.find("divergence", "p", {}, fits=lambda value: False) is None
        assert session.find("divergence", "p", {}, fits=lambda value: True) is not None


@pytest.mark.parametrize(
    ("value", "kind", "right"),
    [
        (1, float, True),
        (True, float, False),
        (True, int, False),
        (1.5, int, False),
        (None, float | None, True),
        ("x", float | None, False),
        ([1, 2.0], Sequence[float], True),
        ("12", Sequence[str], False),
        ({"a": [1.0]}, Mapping[str, list[float]], True),
        ({"a": 1.0}, Mapping[str, list[float]], False),
        (Ratio(1.0, 1.0, 1.0, 3), Ratio, True),
        (Ratio("1", 1.0, 1.0, 3), Ratio, False),
    ],
)
def test_conforms(value, kind, right):
    assert conforms(value, kind) == right


@pytest.mark.parametrize(
    "value",
    [
        3,
        [],
        {"front": [1]},
        {"front": [{}]},
        {"front": 3},
        {"facts": {"items": "many"}},
        {"facts": []},
        {"facts": {"bank": {"hydra": {}}}},
        {"sites": ["a"]},
        {"sites": [{"name": 3}]},
        {"sites": [{"name": "a", "legal": {"hydra": 3}}]},
        {"best": 3},
        {"settings": {"max_drop": None}, "task": 3},
        {"sensitivity": {"a": {"hydra": "x"}}},
    ],
    ids=json.dumps,
)
def test_a_damaged_result_is_one_line(value):
    with pytest.raises(StoreError, match="expected the result of run r, got a damaged one"):
        read_result(value, "r")


def test_an_empty_result_is_one():
    assert read_result({}, "r").best is None
