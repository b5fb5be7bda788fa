"""Rows of a report's tables."""

from __future__ import annotations

from attnpass.tuner.search import RunResult
from attnpass.tuner.show import report_rows


def test_rows_of_a_finished_run(finished):
    result = finished.result
    columns, rows = report_rows.plan_rows(result)
    assert [row[0] for row in rows] == [r.plan for r in (*result.front, *result.slower)]
    assert all(len(row) == len(columns) for row in rows)
    columns, rows = report_rows.layer_rows(result)
    assert len(rows) == len(result.sites) * len(result.facts.saving_ms_per_site)
    assert all(len(row) == len(columns) and row[-1] for row in rows)
    assert any("no plan" not in what for what, _ in report_rows.ceiling_rows(result))
    named = dict(report_rows.where_rows(result))
    assert named["run"] == result.run and named["settings: task"] == result.settings["task"]
    assert dict(report_rows.noise_rows(result))["two identical runs differed by up to"]


def test_a_run_that_knows_nothing_has_no_rows():
    empty = RunResult.from_dict({"task": "x"})
    assert report_rows.plan_rows(empty)[1] == report_rows.layer_rows(empty)[1] == []
    assert report_rows.ceiling_rows(empty) == report_rows.noise_rows(empty) == []
