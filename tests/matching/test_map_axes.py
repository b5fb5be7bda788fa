"""Where rows and columns of a map are, also behind what combines heads."""

import math

import pytest
import torch
from tracing import code_of, projected, projections, proven, shapes, site_of

import attnpass
from attnpass import forms

Q, K, V = shapes()


def keys_first(q, k, v):
    return (v.mT @ (k @ q.mT).softmax(-2)).mT


def turned(q, k, v):
    return ((k @ q.mT).mT).softmax(-1) @ v


def permuted_back(q, k, v):
    return (q @ k.mT).permute(0, 1, 3, 2).transpose(2, 3).softmax(-1) @ v


def softmax_on_permuted(q, k, v):
    return (q @ k.mT).permute(2, 0, 1, 3).softmax(-1).permute(1, 2, 0, 3) @ v


@pytest.mark.parametrize("core", [keys_first, turned, permuted_back, softmax_on_permuted])
def test_queries_are_told_from_keys_by_the_axis_of_softmax(core):
    site = site_of(core, Q, K, V)
    assert (site.query_len, site.key_len, site.heads) == (5, 7, 3)


@pytest.mark.parametrize(
    "core",
    [
        lambda q, k, v: (q @ k.mT).softmax(-2) @ v,
        lambda q, k, v: (q @ k.mT).softmax(1) @ v,
        lambda q, k, v: (q @ k.mT).mT.softmax(-1).mT @ v,
        lambda q, k, v: (q @ k.mT).softmax(-1).mT @ v[..., :5, :],
    ],
    ids=["columns", "heads", "turned", "summed-over-rows"],
)
def test_another_axis_of_softmax_or_of_the_sum_is_declined(core):
    assert code_of(core, Q, K, V) == "AXIS_NOT_TOKEN"


def test_one_head_of_keys_for_all_queries():
    """Multi-query attention: the heads are an axis of the queries alone."""

    def run(x, y, w, u, t):
        q = (x @ w).unflatten(-1, (3, 4)).transpose(1, 2)
        k, v = ((y @ m)[..., :4].unsqueeze(1) for m in (u, t))
        return (q @ k.mT).softmax(-1) @ v

    x, y, weights = projections()
    site = site_of(run, x, y, *weights, weights=3)
    assert (site.heads, site.kv_heads) == (3, 1)


def windows(mask):
    """Rows split in two axes and joined again, a term in between."""

    def core(q, k, v, *more):
        s = (q @ k.mT).unflatten(-1, (1, 7)).unsqueeze(3)
        s = s.reshape(2, 3, 5, 7, 1) * 0.5
        return mask(s.view(2, 3, 5, 7), *more).softmax(-1) @ v

    return core


def test_a_detour_over_split_tokens_is_followed():
    x, y, weights = projections()
    site = site_of(projected(windows(lambda s: s)), x, y, *weights, weights=3)
    assert (site.scale, site.heads) == (0.5, 3)


def test_a_view_that_mixes_rows_and_columns_is_declined():
    x, y, weights = projections()
    found = proven(
        projected(
            lambda q, k, v: (q @ k.mT).reshape(2, 3, 7, 5).softmax(-1).reshape(2, 3, 5, 7) @ v
        ),
        x,
        y,
        *weights,
        weights=3,
    )
    assert found.regions == [] and [d.code for d in found.declined] == ["AXIS_UNPROVEN"]


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
        p = torch.sigmoid(s - math.log(5))
        torch.testing.assert_close(capture(x), model.combined(p) @ v, rtol=0, atol=1e-12)


def test_a_matrix_on_the_keys_is_no_talking_heads():
    report = attnpass.find_sites(Talking("keys").eval(), torch.randn(2, 5, 8))
    assert report.sites == [] and len(report.declined) == 1
