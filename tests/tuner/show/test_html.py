"""The report: one file that says everything in tables, with figures that a browser draws."""

from __future__ import annotations

import html as entities
import json
import re
from dataclasses import replace

import pytest

from attnpass.errors import MissingDependencyError, OutputError
from attnpass.tuner.search import Facts, RunResult
from attnpass.tuner.show import html
from attnpass.tuner.show.html import write_report


def without_scripts(page):
    return re.sub(r"<script>.*?</script>", "", page, flags=re.S)


def test_report_is_one_file_with_the_picture_inside(finished, tmp_path):
    page = write_report(finished.result, tmp_path / "r.html").read_text()
    assert "data:image/png;base64," in page and "Plotly" in page
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    text = without_scripts(page)
    assert all(row.plan in text for row in finished.result.front)
    assert "http://" not in text and "https://" not in text
    assert not re.search(r"<(script|img|link)[^>]+(src|href)=.(?!data:)", text)


def test_figures_and_plans_are_data_that_no_name_can_leave(finished, tmp_path):
    result = replace(finished.result, task="</script><b>", metric="<i>")
    page = write_report(result, tmp_path / "r.html").read_text()
    (held,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    data = json.loads(held)
    assert set(data["figures"]) == {"front", "damage", "saved"}
    assert data["figures"]["front"]["layout"]["yaxis"]["title"]["text"].startswith("change of <i>")
    assert "<b>" not in page.partition("<script")[0]
    told = entities.unescape(without_scripts(page))
    assert f"attnpass tune {finished.result.settings['task']}" in told


def test_a_report_that_cannot_be_written_says_so(finished, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(html, "_drawn", lambda *_: ({}, "", ""))
    with pytest.raises(OutputError, match=r"expected to write .*r.html, got Not a directory"):
        write_report(finished.result, tmp_path / "file" / "r.html")


def missing(*_):
    raise MissingDependencyError("the picture needs a package & more")


def test_without_packages_that_draw_the_report_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr(html, "draw_front", missing)
    monkeypatch.setattr(html, "plotly_script", missing)
    result = replace(RunResult.from_dict({"task": "<b>"}), facts=Facts())
    page = write_report(result, tmp_path / "r.html").read_text()
    assert page.count("the picture needs a package &amp; more") == 2
    assert "&lt;b&gt;" in page and "Plotly.react" in page  # which asks whether it is there
    assert "no plan at all" not in page and "How fast" not in page
