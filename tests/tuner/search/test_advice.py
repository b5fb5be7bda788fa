"""What limits a run without a proven plan, and what could change it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attnpass.tuner.measure import Bound, Conditions, Ratio
from attnpass.tuner.search import LOSSLESS, Facts, PlanRow, RunResult
from attnpass.tuner.search.advice import advise, limits, next_steps
from attnpass.tuner.search.plan_row import PlanLatency

FACTS = Facts(
    held_out=90,
    provable=299,
    baseline="unchanged model, compiled",
    attention_share=0.06,
    ceiling_ratio=Ratio(1.06, 0.99, 2.17, 30),
    form_ratios={"sigmoid": Ratio(1.02, 0.9, 1.3, 30), "hydra": Ratio(0.9, 0.88, 0.93, 30)},
)

SITES = [
    {"name": name, "legal": {"sigmoid": None, "hydra": None if ok else {"code": "MASK_ARBITRARY"}}}
    for name, ok in (("a", True), ("b", False))
]

GIVEN = {"max_drop": 0.01, "recover": "calibrate", "forms": ["sigmoid", "hydra"]}


def result(**more) -> RunResult:
    given = {"facts": FACTS, "sites": SITES, **more}
    return replace(RunResult.from_dict({"settings": GIVEN}), **given)


def test_a_run_with_a_proven_plan_or_without_latencies_needs_none():
    assert advise(result(best="cafe")) == []
    assert advise(result(facts=Facts(items=3))) == []


def test_every_limit_is_one_sentence():
    bound = Bound(60, 0.9, 0.032, 0.051, 0.95)
    slow = PlanRow("b", {}, 9.0, bound, latency=PlanLatency(9.0, Ratio(1.01, 0.98, 1.03, 30)))
    found = limits(result(nearest=[PlanRow("a", {}, 5.0, bound)], slower=[slow]))
    assert [line.partition(":")[0] for line in found] == [
        *("ceiling", "legality", "speed", "speed", "accuracy")
    ]
    assert "6% of the time" in found[0] and "1.060x [0.990, 2.170]" in found[0]
    assert found[1].startswith("legality: hydra at 1 of 2 sites (MASK_ARBITRARY;")
    assert "hydra 0.900x" in found[2] and "sigmoid" not in found[2]
    assert "1 plans" in found[3] and "1.010x" in found[3]
    assert "drops 3.20%, at most 5.10% on 60 selection items, where 1.00% are" in found[4]


def test_noise_is_the_first_limit_and_hides_what_it_hides():
    noisy = replace(
        FACTS,
        reliable=False,
        floor=0.206,
        conditions=Conditions(5.3, 0.8, 0.02, 0, 2).as_dict(),
        undecided=["hydra"],
    )
    found = limits(result(facts=noisy))
    assert found[0].startswith("noise: two identical runs differed by up to 21% (load 5.3, others")
    assert any(line.startswith("noise hides the gain of hydra") for line in found)
    assert not any(line.startswith("speed") for line in found), "noise excludes nothing"
    assert any("OMP_NUM_THREADS=1" in line for line in next_steps(result(facts=noisy)))


@pytest.mark.parametrize(
    ("change", "word", "is_said"),
    [
        ({}, "longer sequences", True),
        ({"facts": replace(FACTS, attention_share=0.5)}, "longer sequences", False),
        ({}, "299 held-out items or more", True),
        ({"facts": replace(FACTS, held_out=300)}, "held-out items", False),
        ({"nearest": [PlanRow("a", {}, 5.0)]}, "--recover distil", True),
        ({}, "--recover distil", False),
        ({"facts": replace(FACTS, baseline=LOSSLESS)}, "without options is that gain", True),
        ({"facts": replace(FACTS, baseline=LOSSLESS)}, "bfloat16", False),
        ({}, "bfloat16", True),
    ],
)
def test_what_could_change_it(change, word, is_said):
    assert any(word in line for line in next_steps(result(**change))) == is_said


def test_it_does_not_say_what_was_tried():
    distilled = {"settings": {**GIVEN, "recover": "distil"}, "nearest": [PlanRow("a", {}, 5.0)]}
    assert not any("--recover" in line for line in next_steps(result(**distilled)))
