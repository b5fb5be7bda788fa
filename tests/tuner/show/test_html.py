"""The report: one file, the picture inside."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from attnpass.errors import MissingDependencyError, OutputError
from attnpass.tuner.search import Facts, RunResult
from attnpass.tuner.show import html
from attnpass.tuner.show.html import write_report


def test_report_is_one_file_with_the_picture_inside(finished, tmp_path):
    page = write_report(finished.result, tmp_path / "r.html").read_text()
    assert "data:image/png;base64," in page
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert all(row.plan in page for row in finished.result.front)
    assert "http://" not in page and "https://" not in page


def test_a_report_that_cannot_be_written_says_so(finished, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(html, "_picture", lambda *_: "")
    with pytest.raises(OutputError, match="expected to write .*r.html, got Not a directory"):
        write_report(finished.result, tmp_path / "file" / "r.html")


def test_without_matplotlib_the_report_says_how_to_get_the_picture(tmp_path, monkeypatch):
    def missing(*_):
        raise MissingDependencyError("the picture needs matplotlib & more")

    monkeypatch.setattr(html, "draw_front", missing)
    result = replace(RunResult.from_dict({"task": "<b>"}), facts=Facts())
    page = write_report(result, tmp_path / "r.html").read_text()
    assert "<p>the picture needs matplotlib &amp; more</p>" in page
    assert "&lt;b&gt;" in page and "no plan at all" not in page
    assert json.dumps({"settings": {}})[1:-1] in page.replace("&quot;", '"')
