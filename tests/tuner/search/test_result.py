"""The result of a run, to JSON and back, also from older versions and from committed results."""

from __future__ import annotations

import json
from dataclasses import replace

import house
import pytest

from attnpass.store import Store
from attnpass.tuner.search.result import Facts, RunResult
from attnpass.tuner.show import front_table, runs_table, sensitivity_table, verdict

KEYS = [
    *("run", "status", "task", "created", "metric", "settings", "facts", "device", "versions"),
    *("sites", "declined", "sensitivity", "fit", "tried", "front", "nearest", "best"),
    *("slower", "scored"),
]
"""The keys of a stored result, in their order; the database and --json hold exactly these."""

FACTS = [
    *("items", "selection", "held_out", "crossed", "baseline_score", "provable", "baseline_ms"),
    *("floor", "baseline", "attention_share", "ceiling", "ceiling_skipat", "softmax_ratio"),
    *("bare_ratio", "skip_ratio", "reliable", "conditions", "ceiling_ratio", "threads"),
    *("saving_ms_per_site", "form_ratios", "undecided", "bank", "finalists_floor", "cut"),
]


def test_a_run_keeps_the_shape_of_its_json(recovered):
    value = json.loads(json.dumps(recovered.result.as_dict()))
    assert list(value) == KEYS
    assert [k for k in FACTS if k in value["facts"]] == list(value["facts"])
    rare = {"finalists_floor", "reliable", "undecided", "threads", "cut"}
    assert set(FACTS) - set(value["facts"]) <= rare
    assert set(value["facts"]["bank"]["hydra"]) == {"plan", "losses", "steps", "seconds"}
    with Store(recovered.path) as store:
        assert store.run(recovered.result.run)["result"] == value
    assert json.loads(json.dumps(RunResult.from_dict(value).as_dict())) == value


@pytest.mark.parametrize("name", ["digits", "digits_recovered", "minilm_recovered"])
def test_a_committed_result_survives(name):
    path = house.ROOT / "benchmarks" / "results" / f"{name}_cpu.json"
    value = json.loads(path.read_text())
    found = json.loads(json.dumps(RunResult.from_dict(value).as_dict()))
    shared = [k for k in KEYS if k in value]
    assert {k: found[k] for k in shared} == {k: value[k] for k in shared}


OLD = {
    "run": "0123456789ab",
    "status": "done",
    "task": "digits",
    "created": "2026-01-01T00:00:00Z",
    "metric": "accuracy",
    "settings": {"max_drop": 0.02},
    "facts": {"baseline_ms": 2.0, "baseline_score": 0.9, "floor": 0.01, "unknown": 1},
    "sites": [{"name": "a", "legal": {}}],
    "front": [
        {
            "plan": "cafe",
            "forms": {"a": "hydra"},
            "selection": None,
            "held_out": {"items": 9, "score": 1, "drop": 0, "upper": 0.01, "confidence": 0.95},
            "latency": {"ms": 1.0, "ratio": {"median": 2, "low": 1.9, "high": 2.1, "pairs": 9}},
        }
    ],
    "best": "cafe",
}
"""As an early version stored it: no ``nearest``, ``fit``, ``recovery``, ``device``, ``tried``."""


def test_a_result_of_an_older_version_loads_and_is_shown():
    result = RunResult.from_dict(OLD)
    assert (result.nearest, result.tried, result.device) == ([], 0, {})
    assert result.facts.as_dict() == {k: v for k, v in OLD["facts"].items() if k != "unknown"}
    assert result.best_row.plan == "cafe" and result.best_row.recovery is None
    assert verdict(result).startswith("plan cafe: 2.000x [1.900, 2.100]")
    assert front_table(result).row_count == 2 and sensitivity_table(result).row_count == 1
    row = {"id": "0123", "created": "", "task": "digits", "status": "done", "result": OLD}
    assert runs_table([row, {**row, "result": {}}], 2).row_count == 2


def test_an_empty_result_loads_and_is_shown():
    result = RunResult.from_dict({})
    assert result.best_row is None and result.facts == Facts()
    assert "no gain" in verdict(result) and front_table(result).row_count == 1


def test_the_noise_is_that_beside_the_finalists_where_there_is_one():
    assert Facts().noise == 0.0 and Facts(floor=0.1).noise == 0.1
    assert Facts(floor=0.1, finalists_floor=0.0).noise == 0.0


def test_what_was_cut_is_known_by_choice():
    cut = ["calibration: relu2, gelu", "sensitivity: skipat r=1 kernel=3", "search: 3 plans"]
    facts = replace(Facts(), cut=cut)
    for choice in ("relu2", "gelu", "skipat r=1 kernel=3"):
        assert facts.was_cut(choice)
    assert not any(map(facts.was_cut, ("relu", "skipat r=1", "3 plans")))
    assert not Facts().was_cut("relu2")
