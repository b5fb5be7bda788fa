"""What the matcher says about every spelling: one site with the right record, or one Decline."""

import inspect
from dataclasses import replace

import pytest
import torch
from models import (
    CAUSALS,
    DECOYS,
    DISTINCT,
    EQUAL,
    PADDING,
    PLAIN,
    POSITIVES,
    Attention,
    Encoder,
    Stack,
    mul_after,
)
from torch import nn

import attnpass
from attnpass import forms
from attnpass.matching import legality


def only_site(case, sizes=DISTINCT, model=None):
    report = attnpass.find_sites(model or case.model(sizes), *case.inputs(sizes))
    assert [str(d) for d in report.declined] == []
    assert len(report.sites) == 1
    return report.sites[0]


def spelled(site):
    """The record without what names the place in the source."""
    return replace(site, name="", source="", weights=(), legal={})


@pytest.mark.parametrize("sizes", [DISTINCT, EQUAL], ids=["distinct", "equal"])
@pytest.mark.parametrize("case", POSITIVES, ids=str)
def test_record(case, sizes):
    site = only_site(case, sizes)
    expected = case.expected(sizes)
    found = {name: getattr(site, name) for name in expected}
    if expected["scale"] is not None and found["scale"] is not None:
        assert found.pop("scale") == pytest.approx(expected.pop("scale"), rel=1e-6)
    assert found == expected


@pytest.mark.parametrize("cases", [PLAIN, PADDING, CAUSALS], ids=["plain", "padding", "causal"])
def test_equivalent_spellings_give_equal_records(cases):
    """All but the scale: where q comes scaled from outside, the logits are not scaled again."""
    records = {case.name: replace(spelled(only_site(case)), scale=None) for case in cases}
    first = records[cases[0].name]
    assert [name for name, record in records.items() if record != first] == []


@pytest.mark.parametrize("case", PLAIN[:4], ids=str)
def test_softmax_is_legal_and_located(case):
    site = only_site(case)
    assert site.legal["softmax"] is None
    file, _, line = site.source.rpartition(":")
    assert file.endswith("models.py")
    text = inspect.getsource(inspect.getmodule(Attention)).splitlines()[int(line) - 1]
    assert "softmax" in text


@pytest.mark.parametrize("sizes", [DISTINCT, EQUAL], ids=["distinct", "equal"])
@pytest.mark.parametrize(("case", "code"), DECOYS, ids=lambda x: str(x))
def test_decoy(case, code, sizes):
    report = attnpass.find_sites(case.model(sizes), *case.inputs(sizes))
    assert report.sites == []
    assert [d.code for d in report.declined] == [code]
    (decline,) = report.declined
    assert decline.path == "root"
    assert decline.hint and decline.node
    file, _, line = decline.source.rpartition(":")
    assert file.endswith("models.py")
    text = inspect.getsource(inspect.getmodule(Attention)).splitlines()[int(line) - 1]
    assert "softmax" in text or "scaled_dot_product" in text


@pytest.mark.parametrize("name", ["linear_attention", "sum_normalised"])
def test_no_softmax_map_is_no_site(name):
    import models

    model = Attention(getattr(models, name)).eval()
    (x,) = POSITIVES[0].inputs()
    report = attnpass.find_sites(model, x)
    assert report.sites == []
    assert all(d.code.startswith(("NOT_ATTENTION", "AXIS")) for d in report.declined)


def test_equal_heads_from_the_encoder_fast_path_and_from_training():
    """In evaluation PyTorch runs one opaque operator, in training many."""
    model, inputs = Encoder(), POSITIVES[0].inputs()
    training = attnpass.find_sites(model.train(), *inputs).sites
    evaluated = attnpass.find_sites(model.eval(), *inputs).sites
    assert len(training) == len(evaluated) == 1
    assert spelled(training[0]) == spelled(evaluated[0])
    assert training[0].name == evaluated[0].name


def test_returned_weights_forbid_all_but_allowed_forms():
    from models import Multihead

    model, (x,) = Multihead(weights=True).eval(), POSITIVES[0].inputs()
    (site,) = attnpass.find_sites(model, x).sites
    assert {f for f, no in site.legal.items() if no is None} == {"softmax"}
    codes = {no.code for f, no in site.legal.items() if f not in ("softmax", "skipat")}
    assert codes == {"PROBS_ESCAPE"}


def test_other_weights_may_be_allowed():
    from models import Multihead

    model, (x,) = Multihead(weights=True).eval(), POSITIVES[0].inputs()
    (site,) = attnpass.find_sites(model, x, allow=("other_weights",)).sites
    assert site.legal["sigmoid"] is None


def test_dropout_in_training_is_recorded_and_decided_by_allow():
    from models import dropped

    model, (x,) = Attention(dropped).train(), POSITIVES[0].inputs()
    (site,) = attnpass.find_sites(model, x).sites
    assert site.dropout == pytest.approx(0.3)
    assert site.legal["softmax"] is None
    assert site.legal["sigmoid"].code == "DROPOUT_TRAINING"
    (site,) = attnpass.find_sites(model, x, allow=("drop_dropout",)).sites
    assert site.legal["sigmoid"] is None
    (site,) = attnpass.find_sites(model.eval(), x).sites
    assert site.dropout == 0.0 and site.legal["sigmoid"] is None


def test_a_module_called_twice_and_shared_modules_are_ordinals():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = Attention(mul_after)
            self.same = self.attn

        def forward(self, x):
            return self.same(self.attn(x))

    (x,) = POSITIVES[0].inputs()
    sites = attnpass.find_sites(Twice().eval(), x).sites
    assert len(sites) == 2
    assert len({s.name for s in sites}) == 2
    assert sites[0].weights == sites[1].weights


def test_stack_names_follow_the_modules():
    (x,) = POSITIVES[0].inputs()
    report = attnpass.find_sites(Stack(3).eval(), x)
    assert [s.name for s in report.sites] == [f"blocks.{i}.attn" for i in range(3)]
    named = dict(Stack(3).named_modules())
    assert all(s.name in named for s in report.sites)
    assert [s.legal["skipat"] is None for s in report.sites] == [False, True, True]


def test_names_survive_modules_that_look_like_containers():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.my_modules = nn.ModuleList([Attention(mul_after)])

        def forward(self, x):
            return self.my_modules[0](x)

    (x,) = POSITIVES[0].inputs()
    (site,) = attnpass.find_sites(Model().eval(), x).sites
    assert site.name == "my_modules.0"


def test_a_mask_that_keeps_nothing_is_no_internal_error():
    """``tril(-1)`` of one token keeps nothing."""
    import torch
    from models import scores_of

    def strict(q, k, v, m, mod):
        keep = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(-1)
        return scores_of(q, k).masked_fill(~keep, -1e9).softmax(-1) @ v

    x = torch.randn(2, 1, DISTINCT.D)
    report = attnpass.find_sites(Attention(strict).eval(), x)
    assert len(report.sites) == 1
    assert report.sites[0].mask


def test_nothing_found_warns(caplog):
    report = attnpass.find_sites(torch.nn.Linear(4, 4), torch.rand(2, 4))
    assert report.sites == []
    assert "no attention found in Linear" in caplog.text


class Sunk(torch.nn.Module):
    """A learned column beside the logits, dropped before the values or not."""

    def __init__(self, dropped):
        super().__init__()
        self.qkv, self.sink = torch.nn.Linear(8, 24), torch.nn.Parameter(torch.zeros(2, 1, 1))
        self.dropped = dropped

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        s = q @ k.transpose(-2, -1)
        sink = self.sink.expand(s.shape[0], -1, s.shape[2], 1)
        p = torch.cat([s, sink], -1).softmax(-1)
        if self.dropped:
            return p[..., :-1] @ v
        return p @ torch.cat([v, torch.zeros_like(v[:, :, :1])], 2)


def test_a_sink_is_recorded_and_left_out_of_the_other_forms():
    model, x = Sunk(True).double().eval(), torch.randn(2, 5, 8, dtype=torch.float64)
    (site,) = attnpass.find_sites(model, x).sites
    assert site.sink and not site.swapped
    assert site.legal["softmax"] is None and site.legal["sigmoid"] is None
    assert site.legal["hydra"].code == "SINK"
    capture = attnpass.Capture(model).trace(x)
    with torch.no_grad():
        want = model(x)
        capture.use_modules({site.name: forms.build("softmax", site)})
        torch.testing.assert_close(capture(x), want, rtol=0, atol=1e-12)
        capture.use_modules({site.name: forms.build("sigmoid", site, trainable=False)})
        q, k, v = model.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        p = torch.sigmoid(q @ k.transpose(-2, -1) - torch.tensor(5.0).log().double())
        torch.testing.assert_close(capture(x), p @ v, rtol=0, atol=1e-12)


def test_a_sink_that_meets_values_declines():
    report = attnpass.find_sites(Sunk(False).eval(), torch.randn(2, 5, 8))
    assert report.sites == []
    assert [d.code for d in report.declined] == ["AXIS_UNPROVEN"]


class Talking(torch.nn.Module):
    """Heads combined by a matrix before and after softmax; ``axis`` is where it acts."""

    def __init__(self, how):
        super().__init__()
        self.qkv, self.how = torch.nn.Linear(8, 24), how
        self.mix = torch.nn.Linear(2, 2, bias=False)
        self.conv = torch.nn.Conv2d(2, 2, 1)

    def combined(self, s):
        if self.how == "linear":
            return self.mix(s.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.how == "einsum":
            return torch.einsum("bhij,hg->bgij", s, self.mix.weight)
        if self.how == "keys":  # mixes tokens: something else
            return self.mix(s.permute(0, 1, 3, 2)[..., :2, :2].permute(0, 1, 3, 2))
        return self.conv(s)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        p = self.combined((q @ k.transpose(-2, -1)) / 2).softmax(-1)
        if self.how == "keys":
            return p @ v[:, :, :2]
        return self.combined(p) @ v


@pytest.mark.parametrize("how", ["linear", "einsum", "conv"])
def test_talking_heads_exchange_the_softmax_node_alone(how):
    torch.manual_seed(0)
    model, x = Talking(how).double().eval(), torch.randn(2, 5, 8, dtype=torch.float64)
    (site,) = attnpass.find_sites(model, x).sites
    assert site.mixed and site.swapped
    assert {f for f, no in site.legal.items() if no is None} == {"softmax", "sigmoid", "relu"}
    assert site.legal["hydra"].code == "TALKING_HEADS"
    capture = attnpass.Capture(model).trace(x)
    with torch.no_grad():
        want = model(x)
        capture.use_modules({site.name: forms.build("softmax", site)})
        torch.testing.assert_close(capture(x), want, rtol=0, atol=1e-12)
        capture.use_modules({site.name: forms.build("sigmoid", site, trainable=False)})
        q, k, v = model.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        s = model.combined((q @ k.transpose(-2, -1)) / 2)
        p = torch.sigmoid(s - torch.tensor(5.0).log().double())
        torch.testing.assert_close(capture(x), model.combined(p) @ v, rtol=0, atol=1e-12)


def test_a_matrix_on_the_keys_is_no_talking_heads():
    report = attnpass.find_sites(Talking("keys").eval(), torch.randn(2, 5, 8))
    assert report.sites == [] and len(report.declined) == 1


def test_every_code_is_documented():
    import re
    from pathlib import Path

    root = Path(__file__).parent.parent
    page = (root / "docs" / "declines.md").read_text()
    codes = set()
    for path in (root / "attnpass").rglob("*.py"):
        found = re.findall(r'(?:Refuse|Decline)\(\s*f?"([A-Z_]+(?::[a-z]+)?)', path.read_text())
        codes |= set(found)
    codes |= {code for _, code, *_ in legality.RULES}
    codes = {"UNKNOWN_SCORE_OP" if c.startswith("UNKNOWN") else c for c in codes}
    assert len(codes) >= 15
    assert [c for c in sorted(codes) if f"`{c}" not in page] == []


class Mapped(torch.nn.Module):
    """Projections around a core of ``(q, k, v) [B, H, T, d]``, with one parameter for a bias."""

    def __init__(self, core, *bias, heads=2):
        super().__init__()
        self.qkv, self.core, self.h = torch.nn.Linear(8, 24), core, heads
        self.bias = torch.nn.Parameter(torch.randn(*bias)) if bias else None

    def forward(self, x, *more):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.h, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.core(self, q, k, v, *more)


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
    if name in ("written", "data", "mixed-tokens", "detour", "rows-first"):
        assert capture.sites == []
    if name == "head-masks":
        assert [s.mask for s in capture.sites] == [{"arbitrary"}]


def test_transposes_without_gradients_stay_so():
    def core(m, q, k, v):
        with torch.no_grad():
            k = k.transpose(-1, -2)
        return (q @ k).softmax(-1) @ v

    model = Mapped(core).double()
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    options = {"form": "softmax", "inner": "eager"}
    run = torch.compile(model, backend="attnpass", options=options)
    (want,) = torch.autograd.grad(model(x).square().sum(), model.qkv.weight)
    (got,) = torch.autograd.grad(run(x).square().sum(), model.qkv.weight)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
