"""The report in Markdown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attnpass.errors import OutputError
from attnpass.tuner.show.markdown import write_markdown


def test_tables_hold_every_plan_and_no_name_breaks_them(finished, tmp_path):
    result = replace(finished.result, task="a|b")
    text = write_markdown(result, tmp_path / "r.md").read_text()
    assert text.startswith("# attnpass: a\\|b\n")
    for row in result.front:
        assert f"| {row.plan} |" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines and all(line.endswith("|") for line in lines)
    assert "## Layer by layer" in text and "attnpass tune" in text


def test_a_file_that_cannot_be_written_is_one_line(finished, tmp_path):
    with pytest.raises(OutputError, match="choose another file with --out"):
        write_markdown(finished.result, tmp_path / "none" / "r.md")
