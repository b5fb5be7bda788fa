"""The stages of the pass: checks that raise, dumps that can be read."""

from __future__ import annotations

import xml.etree.ElementTree as xml

import pytest
import torch
from models import Attention, Stack, mul_after

import attnpass
from attnpass.errors import CheckError
from attnpass.graph import dump, require
from attnpass.matching import matched
from attnpass.rewrite import rewriter


def test_a_promise_that_does_not_hold_names_stage_and_node():
    graph = torch.fx.symbolic_trace(torch.nn.ReLU()).graph
    (node,) = graph.find_nodes(op="placeholder")
    require(True, "matched", "anything", node)
    with pytest.raises(CheckError, match=r"after the stage matched: it holds; .* at .*input"):
        require(False, "matched", "it holds", node)


def test_each_stage_is_written_as_text_and_picture(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTNPASS_DUMP", str(tmp_path / "dump"))
    model, x = Stack(2).eval(), torch.randn(2, 5, 24)
    options = {"form": "sigmoid", "inner": "eager"}
    with torch.no_grad():
        torch.compile(model, backend="attnpass", options=options)(x)
    texts = sorted((tmp_path / "dump").glob("*.txt"))
    stages = [path.stem.split("_", 2)[2] for path in texts]
    assert stages == ["normal_form", "matched", "rewritten", "traced"]
    normal, found, rewritten, traced = (path.read_text() for path in texts)
    assert "softmax" in normal and "blocks.0.attn" not in normal
    lines = [line for line in found.splitlines() if line.startswith("blocks.1.attn")]
    assert any("softmax" in line for line in lines) and any("matmul" in line for line in lines)
    assert "attnpass_forms.0" in rewritten and "softmax" not in rewritten
    assert "attnpass_forms" not in traced and "sigmoid" in traced
    for path in (tmp_path / "dump").glob("*.svg"):
        root = xml.parse(path).getroot()
        assert root.tag.endswith("svg")
        titles = {t.text for t in root.iter("{http://www.w3.org/2000/svg}title")}
        assert titles == ({"blocks.0.attn", "blocks.1.attn"} if "matched" in path.stem else set())


def test_nothing_is_written_unless_asked(tmp_path, monkeypatch):
    monkeypatch.delenv("ATTNPASS_DUMP", raising=False)
    monkeypatch.chdir(tmp_path)
    dump("matched", torch.fx.symbolic_trace(torch.nn.ReLU()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("on", [True, False])
def test_checks_run_where_they_are_switched_on(on, monkeypatch):
    monkeypatch.setenv("ATTNPASS_CHECK", "1" if on else "0")
    ran = []
    for module, name in (
        (matched, "check_normal_form"),
        (matched, "check_regions"),
        (rewriter, "check_rewritten"),
    ):
        monkeypatch.setattr(module, name, lambda *a, name=name: ran.append(name))
    model, x = Attention(mul_after).eval(), torch.randn(2, 5, 24)
    plan = attnpass.Plan.create(model, x, form="sigmoid")
    capture = attnpass.Capture(model).trace(x)
    capture.use(plan)
    with torch.no_grad():
        capture(x)
    twice = ["check_normal_form", "check_regions"] * 2
    assert ran == ([*twice, "check_rewritten"] if on else [])
