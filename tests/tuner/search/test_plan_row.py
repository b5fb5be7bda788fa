"""One plan of the front, to JSON and back."""

from __future__ import annotations

import math
from dataclasses import replace

from attnpass.tuner.measure import Bound, Ratio
from attnpass.tuner.search.plan_row import PlanLatency, PlanRow, Recovery, record

BOUND = Bound(10, 0.9, 0.1, 0.2, 0.95)


def test_a_row_survives_json():
    row = PlanRow(
        "abc",
        {"a": "hydra"},
        2.0,
        BOUND,
        BOUND,
        0.5,
        PlanLatency(1.5, Ratio(2.0, 1.9, 2.1, 30)),
        Recovery(0.3, 7, 1.0, {"name": "global", "plan": "abc"}),
    )
    assert PlanRow.from_dict(row.as_dict()) == row
    both = replace(row, latency=replace(row.latency, over_lossless=Ratio(1.5, 1.4, 1.6, 30)))
    assert PlanRow.from_dict(both.as_dict()) == both != row
    bare = PlanRow("abc", {}, 2.0)
    assert PlanRow.from_dict(bare.as_dict()) == bare and bare.as_dict()["latency"] == {}


def test_a_row_of_an_older_version_loads():
    row = PlanRow.from_dict({"plan": "abc"})
    assert (row.plan, row.selection, row.latency, row.recovery) == ("abc", None, None, None)
    assert math.isnan(row.estimate_ms)
    half = PlanRow.from_dict({"plan": "a", "latency": {"ms": 1.0}, "held_out": {"drop": 0.1}})
    assert half.latency is None and half.held_out is None


def test_a_record_ignores_fields_that_it_does_not_know():
    assert record(Bound, {**BOUND.as_dict(), "more": 1}) == BOUND
    assert record(Bound, None) is record(Bound, {}) is None
