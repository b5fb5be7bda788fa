"""Runs, layers and tiles as tables."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from attnpass.tuner.check import Similarities
from attnpass.tuner.measure import Bound, Ratio
from attnpass.tuner.search import LOSSLESS, REJECTED, PlanRow, RunResult
from attnpass.tuner.search.plan_row import PlanLatency, Recovery
from attnpass.tuner.show.tables import (
    cka_table,
    forms_line,
    front_table,
    latency_cells,
    recovery_cell,
    runs_table,
    sensitivity_table,
    tile_table,
)

ROW = PlanRow(
    "cafe",
    {"a": "hydra", "b": "softmax"},
    1.0,
    selection=Bound(9, 0.9, 0.03, 0.04, 0.95),
    held_out=Bound(9, 0.9, 0.01, 0.02, 0.95),
    latency=PlanLatency(1.0, Ratio(2.0, 1.9, 2.1, 9)),
)
SITES = [{"name": n, "legal": {"skipat": {"code": "CROSS_GRAPH"}}} for n in "ab"]


def result(*rows: PlanRow, **more) -> RunResult:
    front = [r.as_dict() for r in rows]
    return RunResult.from_dict({"front": front, "best": "cafe", "sites": SITES, **more})


def shown(table) -> str:
    out = io.StringIO()
    Console(file=out, width=250).print(table)
    return out.getvalue()


def test_a_random_score_is_marked():
    facts = {"baseline_score": 0.5, "random": True}
    assert "0.5000 (all items, random)" in shown(front_table(result(ROW, facts=facts)))
    facts = {"baseline_score": 0.5}
    assert "0.5000 (all items)" in shown(front_table(result(ROW, facts=facts)))


def test_choices_are_abbreviated():
    forms = {"a": "softmax", "b": "sigmoid", "c": "hydra", "d": "skipat r=0.5", "e": "new"}
    assert forms_line(forms) == ". | sig | hyd | skip r=0.5 | new"


def test_the_front_has_the_baseline_first_and_no_distillation_where_there_was_none():
    text = shown(front_table(result(ROW, PlanRow("none", {"a": "hydra"}, 1.0))))
    first, second, third = [x for x in text.splitlines() if x.startswith("│")]
    assert "baseline" in first and "nan" in first and ". | ." in first
    cells = [c.strip() for c in second.split("│")[1:-1]]
    assert cells[:4] == ["cafe", "0.9000 (9)", "1.00%", "2.00% (95.00%)"]
    assert cells[4:] == ["1.00", "2.000 [1.900, 2.100]", "hyd | ."]
    assert [c.strip() for c in third.split("│")[1:7]] == ["none", *"-----"]
    assert "distillation" not in text


def test_the_lossless_plan_has_a_row_where_it_is_faster():
    gain = {"median": 1.25, "low": 1.2, "high": 1.3, "pairs": 30}
    facts = {"baseline": LOSSLESS, "baseline_ms": 8.0, "softmax_ratio": gain}
    lines = shown(front_table(result(facts=facts))).splitlines()
    plain, exact = ([c.strip() for c in x.split("│")[5:9]] for x in lines if x.startswith("│"))
    assert plain == ["10.00", "1", "-", ". | ."]
    assert exact == ["8.00", "1.250 [1.200, 1.300]", "1", ". | ."]
    # beside finalists the model as it is was timed again
    facts |= {"finalists_floor": 0.0, "baseline_ms": 20.0}
    over = PlanLatency(1.0, Ratio(2.0, 1.9, 2.1, 9), Ratio(1.6, 1.5, 1.7, 9))
    text = shown(front_table(result(replace(ROW, latency=over), facts=facts)))
    assert "20.00" in text and "16.00" in text
    assert "2.000 [1.900, 2.100] │ 1.600 [1.500, 1.700] │ hyd | ." in text


def test_distillation_has_a_column_where_there_was_one():
    row = PlanRow("cafe", {}, 1.0, ROW.selection, recovery=Recovery(0.2, 3, 1.0))
    assert recovery_cell(row) == "20.00%, 3.00%" and recovery_cell(ROW) == "-"
    text = shown(front_table(result(row, ROW)))
    assert "selection: drop before, after distillation" in text and "20.00%, 3.00%" in text


def test_a_plan_that_was_not_timed_has_no_latency():
    assert latency_cells(PlanRow("a", {}, 1.0)) == ("-", "-")


def test_sensitivity_says_why_a_choice_is_not_there():
    facts = {"saving_ms_per_site": {"hydra": 1.5, "skipat r=0": 2.0, "relu": -1.0}}
    damage = {"a": {"hydra": 0.125}, "b": {"hydra": REJECTED}}
    text = shown(sensitivity_table(result(facts=facts, sensitivity=damage)))
    assert "hydra (+1.50 ms)" in text and "relu (-1.00 ms)" in text
    rows = [[c.strip() for c in x.split("│")[1:-1]] for x in text.splitlines() if x[0] == "│"]
    assert rows == [
        ["a", "0.12", "CROSS_GRAPH", "no gain"],
        ["b", "rejected", "CROSS_GRAPH", "no gain"],
    ]


def test_runs_with_and_without_a_result():
    run = {"id": "0123", "created": "today", "task": "digits", "status": "done"}
    text = shown(runs_table([{**run, "result": result(ROW).as_dict()}, {**run, "result": {}}], 2))
    assert "2 runs" in text
    first, second = [x for x in text.splitlines() if x.startswith("│")]
    assert "cafe" in first and "2.000 [1.900, 2.100]" in first and "2.00%" in first
    assert [c.strip() for c in second.split("│")[3:9]] == [
        *("-", "digits", "done", "-", "-", "-"),
    ]


def test_cka_of_both_kinds():
    found = Similarities("t", ["a", "b"], [[1.0, 0.9], [0.9, 1.0]], [[None] * 2] * 2, [])
    assert cka_table(found, "Z").title == "CKA of block outputs (t)"
    assert "0.90" in shown(cka_table(found, "Z"))
    assert cka_table(found, "A").title == "CKA of attention of the first token (t)"
    assert "0.90" not in shown(cka_table(found, "A"))


def test_tiles_that_are_the_default_have_no_gain():
    fused = {"implementation": "fused", "block_m": 16, "block_n": 64, "heads": 2}
    gain = {"median": 1.5, "low": 1.4, "high": 1.6}
    row = {"class": "c", "tile": fused, "default": {}, "gain": gain, "ms": 2.0, "source": "here"}
    aten = {**row, "tile": {"implementation": "aten"}}
    text = shown(tile_table([row, {**row, "default": fused}, aten]))
    assert "16 rows x 64 columns, 2 heads" in text and "1.500 [1.400, 1.600]" in text
    assert "2 heads (default)" in text and "no gain found" in text
    assert "plain ATen, compiled" in text
