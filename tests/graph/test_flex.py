"""FlexAttention is found, compared with its own result, and stays as it was where it may."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import attnpass
from attnpass import forms

pytestmark = pytest.mark.filterwarnings("ignore")

B, H, T, D = 2, 4, 24, 8
DOCUMENT = torch.randint(0, 3, (B, T), generator=torch.Generator().manual_seed(1))


class Flexible(nn.Module):
    """Self-attention with a score function and a mask function by name."""

    def __init__(self, score, mask, groups=H, lse=False):
        super().__init__()
        self.q, self.o = nn.Linear(16, H * D), nn.Linear(H * D, 16)
        self.k, self.v = nn.Linear(16, groups * D), nn.Linear(16, groups * D)
        self.slopes = nn.Parameter(torch.rand(H, dtype=torch.float32))
        self.table = nn.Parameter(torch.randn(H, 2 * T))
        self.score, self.groups, self.lse = score, groups, lse
        self.mask = MASKS[mask] and create_block_mask(MASKS[mask], B, None, T, T, device="cpu")

    def forward(self, x):
        q = self.q(x).unflatten(-1, (H, D)).transpose(1, 2)
        k, v = (p(x).unflatten(-1, (self.groups, D)).transpose(1, 2) for p in (self.k, self.v))
        slopes, table = self.slopes, self.table
        score = {
            "none": None,
            "alibi": lambda s, b, h, i, j: s + slopes[h] * (j - i),
            "table": lambda s, b, h, i, j: s + table[h, j - i + T - 1],
            "two": lambda s, b, h, i, j: (s - 0.1 * (i - j).abs()) + slopes[h],
            "where": lambda s, b, h, i, j: torch.where(i >= j, s, -float("inf")),
            "cap": lambda s, b, h, i, j: 20 * torch.tanh(s / 20),
            "scaled": lambda s, b, h, i, j: s * slopes[h],
            "turned": lambda s, b, h, i, j: slopes[h] - s,
            "twice": lambda s, b, h, i, j: s + s * slopes[h],
        }[self.score]
        out = flex_attention(
            q, k, v, score, self.mask, enable_gqa=self.groups != H, return_lse=self.lse
        )
        more = out[1].sum() if self.lse else 0.0
        out = out[0] if self.lse else out
        return self.o(out.transpose(1, 2).flatten(2)) + more


MASKS = {
    "none": None,
    "causal": lambda b, h, i, j: i >= j,
    "document": lambda b, h, i, j: (i >= j) & (DOCUMENT[b, i] == DOCUMENT[b, j]),
    "window": lambda b, h, i, j: (i >= j) & (i - j < 5),
    "no-key-left": lambda b, h, i, j: j > i + 3,
}

READ = [("none", mask, H) for mask in MASKS]
READ += [(score, mask, H) for score in ("alibi", "table", "two", "where") for mask in MASKS]
READ += [("table", "document", 2), ("none", "causal", 2)]


def built(score, mask, groups=H, **more):
    torch.manual_seed(0)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Flexible(score, mask, groups, **more).eval(), torch.randn(B, T, 16)


@pytest.mark.parametrize(("score", "mask", "groups"), READ)
def test_it_is_found_and_softmax_put_back_is_what_it_computes(score, mask, groups):
    model, x = built(score, mask, groups)
    with torch.no_grad():
        want = model(x)
        capture = attnpass.Capture(model).trace(x)
        (site,) = capture.sites
        assert (site.heads, site.kv_heads, site.kind, site.degree) == (H, groups, "self", "block")
        assert site.bias == (score in ("alibi", "table", "two"))
        causal = mask in ("causal", "document", "window") or score == "where"
        assert ("causal" in site.mask) == causal
        capture.use_modules({site.name: forms.build("softmax", site)})
        assert torch.allclose(capture(x), want, atol=1e-5)


@pytest.mark.parametrize("score", ["cap", "scaled", "turned", "twice"])
def test_a_score_function_that_does_more_is_named(score):
    model, x = built(score, "causal")
    report = attnpass.find_sites(model, x)
    (declined,) = report.declined
    assert not report.sites and declined.code == "FLEX"
    assert "not read" in declined.hint or "does more" in declined.hint


def test_a_log_sum_exp_that_is_read_is_named():
    model, x = built("none", "causal", lse=True)
    (declined,) = attnpass.find_sites(model, x).declined
    assert declined.code == "FLEX" and "log-sum-exp" in declined.hint


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
@pytest.mark.parametrize("form", ["sigmoid", "none"])
def test_the_backend_gives_the_form_and_leaves_the_rest(form, inner):
    """Two layers, of which one gets the form: the other calls FlexAttention as before."""
    model, x = built("alibi", "document")
    stack = nn.Sequential(model, built("table", "causal")[0]).eval()
    with torch.no_grad():
        want = stack(x)
        options = {"form": form, "inner": inner}
        if form == "sigmoid":
            options |= {"sites": ["0*"]}
        got = torch.compile(stack, backend="attnpass", options=options)(x)
        reference = attnpass.Capture(stack).trace(x)
        first = next(s for s in reference.sites if s.name.startswith("0"))
        if form == "sigmoid":
            reference.use_modules({first.name: forms.build("sigmoid", first)})
        assert torch.allclose(got, reference(x), atol=1e-5)
        assert (form == "none") == torch.allclose(got, want, atol=1e-5)


def test_without_options_it_stays():
    """Its kernels skip whole blocks of the mask, which is not measured."""
    model, x = built("none", "causal")
    attnpass.reset_report()
    with torch.no_grad():
        torch.compile(model, backend="attnpass", options={"inner": "eager"})(x)
    assert not attnpass.compiled_report().rewritten
