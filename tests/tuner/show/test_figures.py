"""Figures of a report: every judged plan is a point, every layer and form a cell."""

from __future__ import annotations

from attnpass.tuner.search import RunResult
from attnpass.tuner.show.figures import figures, front_figure, measured


def test_every_judged_plan_is_a_point_with_its_intervals(finished):
    result = finished.result
    data = front_figure(result)["data"]
    plans = [x for trace in data for x in trace.get("customdata", [])]
    assert sorted(plans) == sorted(row.plan for row in measured(result))
    for trace in data:
        for i, plan in enumerate(trace.get("customdata", [])):
            row = next(r for r in measured(result) if r.plan == plan)
            assert trace["x"][i] == row.latency.ratio.median
            assert trace["y"][i] == -100 * row.held_out.drop
            assert all(site not in "" for site in row.forms) and plan in trace["hovertext"][i]
            low = trace["x"][i] - trace["error_x"]["arrayminus"][i]
            assert abs(low - row.latency.ratio.low) < 1e-12


def test_every_layer_and_form_is_a_cell_that_says_why(finished):
    result = finished.result
    found = figures(result)
    for name in ("damage", "saved"):
        (heat,) = found[name]["data"]
        assert heat["x"] == [s["name"] for s in result.sites]
        assert heat["y"] == list(result.facts.saving_ms_per_site)
        assert len(heat["z"]) == len(heat["y"]) and all(
            len(r) == len(heat["x"]) for r in heat["z"]
        )
        assert all(word for row in heat["text"] for word in row)


def test_without_numbers_there_is_no_figure():
    assert figures(RunResult.from_dict({"task": "x"})) == {}
