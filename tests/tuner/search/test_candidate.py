"""A candidate as the result shows it."""

from __future__ import annotations

from attnpass import Plan
from attnpass.tuner.measure import Bound, Ratio
from attnpass.tuner.search.candidate import Candidate
from attnpass.tuner.search.plan_row import PlanLatency, Recovery
from attnpass.tuner.search.settings import REJECTED


def test_it_is_json_with_the_divergence_beside_the_latency():
    made = Candidate({"a": "hydra"}, Plan({}), 2.0, divergence=0.5)
    bare = made.as_dict()
    assert list(bare) == [
        *("plan", "forms", "estimate_ms", "selection", "held_out", "latency", "recovery")
    ]
    assert bare["latency"] == {"divergence": 0.5} and bare["recovery"] == {}
    proven = Bound(10, 0.9, 0.1, 0.2, 0.95)
    whole = Candidate(
        {"a": "hydra"},
        Plan({}),
        2.0,
        selection=proven,
        held_out=proven,
        divergence=0.5,
        latency=PlanLatency(1.5, Ratio(2.0, 1.9, 2.1, 30)),
        recovery=Recovery(0.3, 7, 1.0, {"name": "global"}),
    ).as_dict()
    assert whole["held_out"] == whole["selection"] == proven.as_dict()
    assert whole["latency"] == {
        "divergence": 0.5,
        "ms": 1.5,
        "ratio": {"median": 2.0, "low": 1.9, "high": 2.1, "pairs": 30},
    }
    assert whole["recovery"] == {
        "name": "global",
        "steps": 7,
        "seconds": 1.0,
        "drop_before": 0.3,
    }


def test_candidates_are_compared_by_identity():
    one, other = (Candidate({}, Plan({})) for _ in range(2))
    assert one != other and one == one and one.divergence == REJECTED
