"""The command init; what it writes is tested with tasks/test_making.py."""

from __future__ import annotations

from small_models import json_lines, sentences, text_model
from tuning import run


def test_a_file_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text_model(tmp_path / "model", "text-classification", num_labels=2)
    json_lines(tmp_path / "r.jsonl", [{"text": t, "label": 1} for t in sentences(80)])
    found = run("init", "hf:model", "--data", "r.jsonl", "--out", "none/task.yaml")
    assert found.returncode == 1
    assert found.stderr.strip().endswith(
        "expected to write none/task.yaml, got No such file or directory"
    )


def test_a_model_that_does_not_load_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.csv").write_text("text,label\na,1\n")
    found = run("init", "hf:none", "--data", "r.csv")
    assert found.returncode == 1 and len(found.stderr.strip().splitlines()) == 1
    assert "expected a folder or a hub's name of a transformers model, got 'none'" in found.stderr
