"""Descriptions of tasks: one string, or a YAML file, that say the same."""

from __future__ import annotations

import pytest

from attnpass.errors import TaskError
from attnpass.tuner.tasks import Description, as_yaml, described


def test_a_description_is_one_string_and_back():
    text = "hf:some/model?data=a%20b.jsonl&metric=accuracy&text=query,text&batch=8"
    found = described(text)
    assert found == Description(
        "hf", "some/model", data="a b.jsonl", batch=8, metric="accuracy", text="query,text"
    )
    assert str(found) == text and described(str(found)) == found


def test_a_models_own_options_and_folders_of_images():
    found = described("timm:vit_tiny,checkpoint=w.pth?data=imagefolder:pictures")
    assert found == Description("timm", "vit_tiny", data="pictures", checkpoint="w.pth")
    assert described("digits") is None and described("file.py:task") is None
    assert described("module.hf:task") is None


def test_a_file_holds_the_same_with_paths_of_its_own_folder(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "rows.csv").write_text("text,label\n")
    monkeypatch.chdir(tmp_path)
    found = Description("hf", "bert", data="sub/rows.csv", batch=4, dtype="bfloat16")
    text = as_yaml(found, tmp_path / "sub")
    assert text == "model: hf:bert\ndata: rows.csv\nbatch: 4\ndtype: bfloat16\n"
    (tmp_path / "sub" / "task.yaml").write_text(text)
    again = described("sub/task.yaml")
    assert again is not None and again.data == "sub/rows.csv"
    assert again.as_dict() == found.as_dict()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf:bert?batch=two", "expected a task's batch to be a number, got 'two'"),
        ("hf:bert?size=2", "expected a task described by .*; got size"),
        ("hf:bert?dtype=int8", "expected a task's dtype of float32, bfloat16, float16"),
        ("hf:bert?kind=poetry", "expected a task's kind of text-classification"),
        ("timm:", "expected timm: with a folder or a name behind it, got none"),
        ("none.yaml", "expected a task's file none.yaml, got: No such file"),
    ],
)
def test_what_is_wrong_is_said(text, message):
    with pytest.raises(TaskError, match=message):
        described(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1", "expected YAML in"),
        ("- 1\n", "expected keys with a model in .* got list"),
        ("model: bert\n", "expected a model of .* that begins with hf:, st:, timm:"),
        ("model: hf:bert\nspeed: 2\n", "got speed"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, text, message):
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(TaskError, match=message):
        described(str(tmp_path / "t.yaml"))
