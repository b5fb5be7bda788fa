"""The entry ``torch.compile(model, backend="attnpass")``: graphs left alone, and fallback."""

import pytest
import torch
from compiling import (
    Counted,
    attention_calls,
    build,
    compiled,
    data,
)
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

import attnpass
from attnpass.compiled import variant
from attnpass.matching import matched
from attnpass.tuner.digits import DigitsViT


def test_form_none_is_untouched():
    model, x, counted = build(2), data(), Counted()
    with torch.no_grad():
        options = {"inner": counted, "form": "none"}
        got = torch.compile(model, backend="attnpass", options=options)(x)
        assert torch.equal(got, model(x))
    (graph,) = counted.graphs
    assert "softmax" in {
        n.target if isinstance(n.target, str) else n.name for n in graph.graph.nodes
    }
    assert attnpass.compiled_report().graphs == 0


def test_disabled_by_the_environment(monkeypatch):
    monkeypatch.setenv("ATTNPASS_DISABLE", "1")
    model, x, counted = build(2), data(), Counted()
    with torch.no_grad():
        got = compiled(model, counted, form="relu")(x)
        assert torch.equal(got, model(x))
    assert attention_calls(counted.graphs[0]) == 2


def test_model_without_attention_is_untouched(warnings_):
    model, counted = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), Counted()
    x = torch.randn(2, 4)
    with torch.no_grad():
        assert torch.equal(compiled(model, counted, form="relu")(x), model(x))
    assert len(counted.graphs) == 1


@pytest.mark.parametrize("strict", [False, True])
def test_internal_error_falls_back_or_raises(strict, monkeypatch, warnings_):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(matched, "match", broken)
    model, x, counted = build(2), data(), Counted()
    run = compiled(model, counted, form="relu", strict=strict)
    if strict:
        with pytest.raises(BackendCompilerFailed, match="planted"):
            run(x)
        return
    with torch.no_grad():
        assert torch.equal(run(x), model(x))
    (decline,) = attnpass.compiled_report().declined
    assert decline.code == "INTERNAL_ERROR" and "planted" in decline.hint
    assert any("unchanged" in w for w in warnings_())
    assert attention_calls(counted.graphs[0]) == 2


def test_rewrite_error_falls_back(monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(variant, "rewrite", broken)
    model, x = build(2), data()
    with torch.no_grad():
        assert torch.equal(compiled(model, form="relu")(x), model(x))
    assert {d.code for d in attnpass.compiled_report().declined} == {"INTERNAL_ERROR"}


@pytest.mark.slow
def test_inductor_gives_what_the_capture_gives():
    """The default inner compiler, on a real model: the tests beside it use eager ones."""
    model, images = DigitsViT(dim=16, depth=2, heads=2).eval(), torch.rand(2, 1, 32, 32)
    plan = attnpass.Plan.create(model, images, form="hydra")
    capture = attnpass.Capture(model).trace(images)
    capture.use(plan)
    fast = torch.compile(model, backend="attnpass", options={"plan": plan, "strict": True})
    attnpass.reset_report()
    with torch.no_grad():
        out, want = fast(images), capture(images)
    assert attnpass.compiled_report().plan == plan.hash
    assert float((out - want).norm() / want.norm()) < 1e-5
