"""Tasks without code run through the commands."""

from __future__ import annotations

import json

from small_models import json_lines, sentences, text_model
from tuning import run


def test_options_describe_a_task_and_init_writes_it_down(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    text_model(tmp_path / "model", "text-classification", num_labels=2)
    rows = [{"text": t, "label": i % 2} for i, t in enumerate(sentences(80))]
    json_lines(tmp_path / "rows.jsonl", rows)
    found = run("sites", "hf:model", "--data", "rows.jsonl", "--batch", "4", "--json")
    assert found.returncode == 0, found.stderr
    assert len(json.loads(found.stdout)["sites"]) == 2
    assert "60 items judge, 20 are learned from" in caplog.text
    made = run("init", "hf:model", "--data", "rows.jsonl", "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["kind"] == "text-classification"
    text = (tmp_path / "task.yaml").read_text()
    assert text.startswith("model: hf:model\ndata: rows.jsonl\n") and "metric: accuracy" in text
    again = run("sites", "task.yaml", "--items", "50", "--json")
    assert again.returncode == 0 and "50 items judge" in caplog.text
    twice = run("init", "hf:model", "--data", "rows.jsonl")
    assert twice.returncode == 1 and "expected a new file, got task.yaml" in twice.stderr
    coded = run("sites", "digits", "--data", "rows.jsonl")
    assert coded.returncode == 1 and "expected --data with a TASK hf:" in coded.stderr
    bad = run("init", "digits")
    assert bad.returncode == 1 and "got digits, which has code" in bad.stderr
