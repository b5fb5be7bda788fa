"""The outcome of a run in words."""

from __future__ import annotations

from dataclasses import replace

from attnpass.tuner.measure import Bound, Ratio
from attnpass.tuner.search import LOSSLESS, Facts, PlanRow, RunResult
from attnpass.tuner.search.plan_row import PlanLatency
from attnpass.tuner.show.words import verdict

LIMIT = 0.3


def result(*rows: PlanRow, **more) -> RunResult:
    given = {"settings": {"max_drop": LIMIT}, **more}
    return replace(RunResult.from_dict(given), front=rows, facts=Facts(baseline_ms=10.0))


def test_where_no_plan_keeps_the_limit_the_nearest_are_shown():
    costs = {1.5: 9.0, 2: 7.0, 4: 5.0}
    near = [
        PlanRow("a", {"x": "hydra"}, ms, Bound(100, 0.5, LIMIT * drop, LIMIT * (drop + 1), 0.95))
        for drop, ms in costs.items()
    ]
    said = verdict(replace(result(), nearest=near)).splitlines()
    assert "no gain" in said[0] and len(said) == 4
    assert f"about 1.11x, drop {1.5 * LIMIT:.2%}, at most {2.5 * LIMIT:.2%} (hyd)" in said[1]


def test_the_best_plan_is_named_with_its_proof():
    latency = PlanLatency(5.0, Ratio(2.0, 1.9, 2.1, 30))
    row = PlanRow("cafe", {}, 5.0, held_out=Bound(600, 0.9, 0.01, 0.02, 0.95), latency=latency)
    assert verdict(result(row, best="cafe")) == (
        "plan cafe: 2.000x [1.900, 2.100] over the compiled baseline, drop 1.00%, proven at most"
        " 2.00% on 600 held-out items"
    )


def test_where_no_plan_is_proven_the_lossless_gain_is_left():
    facts = Facts(baseline_ms=8.0, baseline=LOSSLESS, softmax_ratio=Ratio(1.25, 1.2, 1.3, 30))
    said = verdict(replace(result(), facts=facts))
    assert said.startswith("lossless is the answer: 1.250x [1.200, 1.300], drop 0, nothing to")


def test_a_plan_is_compared_with_the_lossless_one_too():
    latency = PlanLatency(5.0, Ratio(2.0, 1.9, 2.1, 30), Ratio(1.6, 1.5, 1.7, 30))
    row = PlanRow("cafe", {}, 5.0, held_out=Bound(600, 0.9, 0.01, 0.02, 0.95), latency=latency)
    assert "baseline (1.600x [1.500, 1.700] over lossless), drop" in verdict(
        result(row, best="cafe")
    )


def test_an_interrupted_run_says_that_nothing_is_lost():
    assert verdict(result(status="interrupted")).startswith("interrupted; what was measured is")
