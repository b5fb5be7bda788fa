"""Rows of every kind of file that people have."""

from __future__ import annotations

import json
import sys

import pytest
from small_models import pictures

from attnpass.errors import MissingDependencyError, TaskError
from attnpass.tuner.tasks.rows import column, read

ROWS = [{"text": "a, b", "label": "1"}, {"text": 'c "d"\ne', "label": "0"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", "\n".join(json.dumps(r) for r in ROWS) + "\n\n"),
        ("a.json", json.dumps(ROWS)),
        ("a.csv", '\ufefftext,label\n"a, b",1\n"c ""d""\ne",0\n'),
        ("a.tsv", 'text\tlabel\na, b\t1\n"c ""d""\ne"\t0\n'),
    ],
)
def test_tables(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read(str(tmp_path / name)) == (ROWS, None)


def test_a_text_file_is_one_row(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    assert read(str(tmp_path / "a.txt")) == ([{"text": "one\n\ntwo"}], None)


def test_folders_of_images_whole_or_in_parts(tmp_path):
    judged, learnt = read(str(pictures(tmp_path / "whole", ["cat", "dog"], 2)))
    assert [row["label"] for row in judged] == ["cat", "cat", "dog", "dog"] and learnt is None
    pictures(tmp_path / "parts" / "train", ["cat"], 3)
    pictures(tmp_path / "parts" / "val", ["cat", "dog"], 1)
    judged, learnt = read(str(tmp_path / "parts"))
    assert len(judged) == 2 and len(learnt) == 3 and "train" in learnt[0]["image"]


def test_images_of_a_table_are_relative_to_it(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"image": "x/1.png", "label": 0}\n')
    ((row,), _) = read(str(tmp_path / "t.jsonl"))
    assert row["image"] == str(tmp_path / "x" / "1.png")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a"\n', "expected JSON in line 2 of"),
        ("a.jsonl", "[1, 2]", "expected an object per row of .*, got int in row 1"),
        ("a.csv", "a,b\n1\n", "expected 2 columns in row 2 of"),
        ("a.csv", "a,b\n", "expected rows in .*, found none"),
        ("a.xlsx", "x", "expected data that ends with .jsonl"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(TaskError, match=message):
        read(str(tmp_path / name))


def test_a_missing_file_or_package_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(TaskError, match="expected data at none.csv, found none"):
        read("none.csv")
    (tmp_path / "a.parquet").write_text("x")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'attnpass\[data\]'"):
        read(str(tmp_path / "a.parquet"))
    (tmp_path / "dataset_info.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match="was saved by datasets"):
        read(str(tmp_path))


def test_columns_are_found_or_named():
    rows = [{"Sentence": "x", "class": 1}]
    assert column(rows, "", ("text", "sentence"), "text") == "Sentence"
    assert column(rows, "CLASS", (), "label") == "class"
    with pytest.raises(TaskError, match="expected a column of text for the text, got columns"):
        column(rows, "", ("text",), "text")
    with pytest.raises(TaskError, match="expected a column body .* --text-column names it"):
        column(rows, "body", (), "text")
