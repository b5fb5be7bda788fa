"""What a folder of sentence-transformers says, in its older and its newer words."""

from __future__ import annotations

import json

import pytest

from attnpass.errors import TaskError
from attnpass.tuner.tasks.sentence_folder import SentenceFolder


def folder(path, kinds, pooling):
    rows = [
        {"idx": i, "name": str(i), "path": "" if i == 0 else f"{i}_{kind}", "type": f"a.b.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (path / "modules.json").write_text(json.dumps(rows))
    for row in rows[1:]:
        (path / row["path"]).mkdir()
        (path / row["path"] / "config.json").write_text(json.dumps(pooling))
    return SentenceFolder.of(str(path))


@pytest.mark.parametrize(
    ("pooling", "how"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({}, "mean"),
    ],
)
def test_poolings(tmp_path, pooling, how):
    found = folder(tmp_path, ["Transformer", "Pooling"], pooling)
    assert found.pooling() == (how, False) and found.transformer == str(tmp_path)


def test_unit_length(tmp_path):
    kinds = ["Transformer", "Pooling", "Normalize"]
    assert folder(tmp_path, kinds, {"pooling_mode": "mean"}).pooling() == ("mean", True)


def test_what_is_not_supported_is_said(tmp_path):
    with pytest.raises(TaskError, match="with .*modules.json; found none"):
        SentenceFolder.of(str(tmp_path))
    two = {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}
    with pytest.raises(TaskError, match="pooling_mode_cls_token and pooling_mode_max_tokens"):
        folder(tmp_path, ["Transformer", "Pooling"], two).pooling()
    (tmp_path / "1_Pooling" / "config.json").unlink()
    (tmp_path / "1_Pooling").rmdir()
    with pytest.raises(TaskError, match="got Dense; write a task of your own"):
        folder(tmp_path, ["Transformer", "Dense"], {})
