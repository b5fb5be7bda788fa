"""One anchor read to a region: every spelling gives one site with the right record."""

import functools
from dataclasses import replace

import pytest
import torch
from models import (
    CAUSALS,
    DISTINCT,
    EQUAL,
    PADDING,
    PLAIN,
    POSITIVES,
)
from models.cases import located, spelled
from models.modules import Mapped

import attnpass
from attnpass import forms


@functools.cache
def only_site(case, sizes):
    """The record of a case, captured once for all tests that look at it."""
    report = attnpass.find_sites(case.model(sizes), *case.inputs(sizes))
    assert [str(d) for d in report.declined] == []
    assert len(report.sites) == 1
    return report.sites[0]


@pytest.mark.parametrize("sizes", [DISTINCT, EQUAL], ids=["distinct", "equal"])
@pytest.mark.parametrize("case", POSITIVES, ids=str)
def test_record(case, sizes):
    site = only_site(case, sizes)
    expected = case.expected(sizes)
    found = {name: getattr(site, name) for name in expected}
    if expected["scale"] is not None and found["scale"] is not None:
        assert found.pop("scale") == pytest.approx(expected.pop("scale"), rel=1e-6)
    assert found == expected
    if sizes is DISTINCT:
        assert comparable(case) == comparable(first_alike(case))


def comparable(case):
    """All but the scale: where q comes scaled from outside, the logits are not scaled again."""
    return replace(spelled(only_site(case, DISTINCT)), scale=None)


def first_alike(case):
    """The first of the equivalent spellings that ``case`` belongs to, else the case itself."""
    return next((cases[0] for cases in (PLAIN, PADDING, CAUSALS) if case in cases), case)


@pytest.mark.parametrize("case", PLAIN[:4], ids=str)
def test_softmax_is_legal_and_located(case):
    site = only_site(case, DISTINCT)
    assert site.legal["softmax"] is None
    text = located(site.source)
    assert "softmax" in text


def rows_first(m, q, k, v):
    """A map [B, T, H, S] with a bias on its last three axes; T = H."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    p = (torch.einsum("bqhd,bkhd->bqhk", q, k) + m.bias).softmax(-1)
    return torch.einsum("bqhk,bkhd->bqhd", p, v)


def detour_to_other_axes(m, q, k, v):
    """[B*H, T, S] to [B, H, 2, 3, 2, 3], a bias there, and on as [B, H, T, S]; B = H."""
    b, h, t, d = q.shape
    s = torch.bmm(q.reshape(b * h, t, d), k.reshape(b * h, t, d).mT).view(b, h, 2, 3, 2, 3)
    return (s + m.bias).view(b, h, t, t).softmax(-1) @ v


def repeated_head_masks(m, q, k, v, keep):
    """One key mask for every pair of heads: no padding, though its first axis has B entries."""
    n = keep.shape[-1]
    spread = keep[:, None, None, :].expand(2, 2, 1, n).reshape(4, 1, n)
    return (q @ k.mT).masked_fill(~spread, -1e9).softmax(-1) @ v


def drawn_mask(m, q, k, v):
    drawn = torch.bernoulli(torch.full((q.shape[-2],), 0.05, dtype=q.dtype)).bool()
    return (q @ k.mT).masked_fill(drawn, -1e9).softmax(-1) @ v


def written_exp(m, q, k, v):
    e = (q @ k.mT).exp()
    e.diagonal(dim1=-2, dim2=-1).fill_(0)
    return e / e.sum(-1, keepdim=True) @ v


def past_autograd(m, q, k, v):
    q.data.mul_(2.0)
    return (q @ k.mT).softmax(-1) @ v


def mixed_tokens(m, q, k, v):
    s = (q @ k.mT).permute(0, 2, 3, 1)
    s = torch.nn.functional.layer_norm(s, s.shape[-2:]).permute(0, 3, 1, 2)
    return s.softmax(-1) @ v


ODD = {
    "rows-first": (Mapped(rows_first, 2, 2, 2), (3, 2, 8), None),
    "detour": (Mapped(detour_to_other_axes, 2, 2, 1, 2, 1), (2, 6, 8), None),
    "head-masks": (Mapped(repeated_head_masks, heads=4), (2, 6, 8), "keep"),
    "drawn": (Mapped(drawn_mask), (2, 6, 8), None),
    "written": (Mapped(written_exp), (2, 6, 8), None),
    "data": (Mapped(past_autograd), (2, 6, 8), None),
    "mixed-tokens": (Mapped(mixed_tokens), (2, 6, 8), None),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_spellings_are_never_silently_wrong(name):
    """Found or declined, softmax put back is what the model computes, whatever the sizes hide."""
    model, shape, keep = ODD[name]
    model = model.double().eval()
    more = (torch.tensor([[True] * 6, [True] * 4 + [False] * 2]),) if keep else ()
    x = torch.randn(*shape, dtype=torch.float64)
    with torch.no_grad():
        capture = attnpass.Capture(model).trace(x, *more)
        capture.use_modules({s.name: forms.build("softmax", s) for s in capture.sites})
        for seed in range(4):
            torch.manual_seed(seed)
            want = model(x, *more)
            torch.manual_seed(seed)
            torch.testing.assert_close(capture(x, *more), want, rtol=0, atol=1e-10)
    if name in ("written", "data"):
        assert capture.sites == []
    if name in ("detour", "rows-first", "mixed-tokens"):
        assert [s.degree for s in capture.sites] == ["logits"]
    if name == "head-masks":
        assert [s.mask for s in capture.sites] == [{"arbitrary"}]
