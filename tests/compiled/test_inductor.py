"""What inductor's own attention matcher would misread is handed on with that matcher off."""

import math

import pytest
import torch
from torch import nn

import attnpass


class Model(nn.Module):
    """A look-alike beside a real attention, so that there is something to rewrite."""

    def __init__(self, core):
        super().__init__()
        self.core = core
        self.qkv, self.o = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        y = x + self.o(((q @ k.transpose(-2, -1) / 2).softmax(-1) @ v).transpose(1, 2).flatten(2))
        q, k, v = self.qkv(y).unflatten(-1, (3, 4, 4)).unbind(2)
        return self.core(q, k, v)


def columns(q, k, v):
    q, k, v = (x.permute(0, 2, 1, 3) for x in (q, k, v))
    return (q @ k.transpose(-2, -1) / 2.0).softmax(-2) @ v


def heads(q, k, v):
    q, k, v = (x.permute(0, 2, 1, 3) for x in (q, k, v))
    return (q @ k.transpose(-2, -1) / 2.0).softmax(1) @ v


def turned_keys(q, k, v):
    """Keys turned in one permute, from [B, S, H, d] straight to [B, H, d, S]."""
    return (q.permute(0, 2, 1, 3) @ k.permute(0, 2, 3, 1) * 0.5).softmax(-1) @ v.permute(
        0, 2, 1, 3
    )


def tensor_divisor(q, k, v):
    q, k, v = (x.permute(0, 2, 1, 3) for x in (q, k, v))
    s = q @ k.transpose(-2, -1) / torch.full((), 2.0)
    return (s + torch.zeros(1, 1, 1, s.shape[-1])).softmax(-1) @ v


def canonical(q, k, v):
    q, k, v = (x.permute(0, 2, 1, 3) for x in (q, k, v))
    return (q @ k.transpose(-2, -1) / math.sqrt(4)).softmax(-1) @ v


ODD = [columns, heads, turned_keys, tensor_divisor]


def handed(monkeypatch, core, **options):
    """Whether inductor's pattern matcher is on for what is handed to it, and the report."""
    seen = {}

    def compile_fx(gm, inputs, config_patches=None):
        seen.update(config_patches or {})
        return gm.forward

    import torch._inductor.compile_fx as inductor

    monkeypatch.setattr(inductor, "compile_fx", compile_fx)
    torch.manual_seed(0)
    model = Model(core).eval()
    x = torch.randn(2, 4, 16)
    with torch.no_grad():
        torch.compile(model, backend="attnpass", options=options)(x)
    return seen.get("pattern_matcher", True), attnpass.compiled_report()


@pytest.mark.parametrize("core", ODD, ids=lambda f: f.__name__)
def test_matcher_is_off_where_it_would_misread(core, monkeypatch):
    on, report = handed(monkeypatch, core, form="sigmoid", sites=["root"])
    assert not on
    (notice,) = report.misread
    assert notice.code == "INDUCTOR" and "test_inductor" in notice.source
    assert "inductor misreads" in notice.hint


def test_matcher_stays_on_for_what_it_reads(monkeypatch):
    on, report = handed(monkeypatch, canonical, form="sigmoid", sites=["root"])
    assert on and report.misread == []


def test_matcher_stays_on_where_the_odd_site_is_rewritten(monkeypatch):
    on, report = handed(monkeypatch, turned_keys, form="sigmoid")
    assert len(report.rewritten) == 2
    assert on and report.misread == []


def test_matcher_is_off_also_where_nothing_is_rewritten(monkeypatch):
    on, report = handed(monkeypatch, columns, form="sigmoid", sites=["nowhere"])
    assert not on and len(report.misread) == 1


@pytest.mark.slow
@pytest.mark.parametrize("core", [columns, turned_keys], ids=lambda f: f.__name__)
def test_compiled_look_alike_equals_eager(core):
    """Through inductor itself, which alone gets these wrong (torch 2.13)."""
    torch.manual_seed(0)
    model = Model(core).eval()
    x = torch.randn(2, 4, 16)
    with torch.no_grad():
        want = model.double()(x.double())
        got = torch.compile(
            model.float(), backend="attnpass", options={"form": "softmax", "sites": ["root"]}
        )(x)
    assert ((got - want).abs().max() / want.abs().max()).item() < 1e-5
