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


class Core(nn.Module):
    """FlexAttention on its inputs; ``t`` is what the score function captures."""

    def __init__(self, score, t=None):
        super().__init__()
        self.score = score
        self.register_buffer("t", t)

    def forward(self, q, k, v):
        return flex_attention(q, k, v, lambda *given: self.score(self.t, *given))


def round_trip(score, t=None, dtype=torch.float64, sizes=(2, 3, 5, 4)):
    """The sites, and whether softmax put back is what the model computes."""
    torch._dynamo.reset()
    g = torch.Generator().manual_seed(0)
    given = [torch.randn(*sizes, generator=g).to(dtype) for _ in range(3)]
    model = Core(score, t)
    capture = attnpass.Capture(model).trace(*given)
    capture.use_modules({s.name: forms.build("softmax", s) for s in capture.sites})
    want = model(*given)
    bound = {torch.float64: 1e-6, torch.bfloat16: 2e-2, torch.float16: 5e-3}[dtype]
    return len(capture.sites), torch.allclose(capture(*given), want, atol=bound, rtol=bound)


INT8 = (torch.arange(9) * 25).clamp(max=120).to(torch.int8)
THIRD = torch.tensor(1 / 3)
TABLE = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))

CAPTURED = {
    "indexed-twice": (lambda t, s, b, h, i, j: s + t[h][j], TABLE),
    "by-a-number": (lambda t, s, b, h, i, j: s + t[0, j], TABLE),
    "bools-added": (lambda t, s, b, h, i, j: s + (i >= j) + (i == j), None),
    "small-integers": (lambda t, s, b, h, i, j: s + t[i] + t[j], INT8),
    "unsigned": (lambda t, s, b, h, i, j: s - t[j], torch.arange(9).to(torch.uint8)),
    "its size": (lambda t, s, b, h, i, j: s + t[h, j] * t.size(1), TABLE),
    "multiplied": (lambda t, s, b, h, i, j: s + torch.mul(t[h, j], 0.5), TABLE),
    "by methods": (lambda t, s, b, h, i, j: s.add(t[h, j].mul(0.5).exp2().sub(1)), TABLE),
    "powers of two": (lambda t, s, b, h, i, j: s - torch.exp2(-2.5 * (h + 1)) * (i - j), None),
    "functions": (lambda t, s, b, h, i, j: torch.sub(s, torch.sqrt(t[h, j].square())), TABLE),
    "narrow by wide": (lambda t, s, b, h, i, j: s + t[h, j] * THIRD, TABLE.bfloat16()),
    "number": (lambda t, s, b, h, i, j: (s + 3) + t, torch.tensor(2.0)),
}


@pytest.mark.parametrize("name", CAPTURED)
def test_what_the_score_function_captures_is_read_as_it_reads_it(name):
    assert round_trip(*CAPTURED[name]) == (1, True)


def test_a_captured_tensor_that_is_not_read_by_elements_is_named():
    model = Core(lambda t, s, b, h, i, j: s + t[h].sum() * 0.1, TABLE)
    given = [torch.randn(2, 3, 5, 4) for _ in range(3)]
    with torch.no_grad():
        report = attnpass.find_sites(model, *given)
    assert not report.sites and [d.code for d in report.declined] == ["FLEX"]


@pytest.mark.parametrize(
    "score",
    [
        lambda t, s, b, h, i, j: torch.mul(s, t[h, j]),
        lambda t, s, b, h, i, j: s.mul(t.size(1)),
        lambda t, s, b, h, i, j: torch.sub(t[h, j], s),
        lambda t, s, b, h, i, j: torch.exp2(s),
        lambda t, s, b, h, i, j: torch.add(s, t[h, j], alpha=2),
    ],
)
def test_the_same_functions_of_the_score_are_named(score):
    torch._dynamo.reset()
    given = [torch.randn(2, 3, 5, 4) for _ in range(3)]
    with torch.no_grad():
        report = attnpass.find_sites(Core(score, TABLE), *given)
    assert not report.sites and [d.code for d in report.declined] == ["FLEX"]
    assert "does more" in report.declined[0].hint


def test_a_large_bias_beside_narrow_queries_keeps_its_digits():
    def far(t, s, b, h, i, j):
        return s + 0.5 * j

    assert round_trip(far, None, torch.bfloat16, (1, 1, 600, 4)) == (1, True)


def test_a_bias_beyond_float16_stays_finite():
    def huge(t, s, b, h, i, j):
        return s + torch.where(i >= j, 1e5, 0.0)

    assert round_trip(huge, None, torch.float16) == (1, True)


def test_a_symbolic_head_dim_does_not_leave_the_graph():
    model = Core(lambda t, s, b, h, i, j: s, None)
    given = [torch.randn(2, 3, 5, 4) for _ in range(3)]
    options = {"form": "sigmoid", "inner": "eager"}
    attnpass.reset_report()
    torch._dynamo.reset()
    run = torch.compile(model, backend="attnpass", options=options, dynamic=True)
    with torch.no_grad():
        run(*given)
    codes = {d.code for d in attnpass.compiled_report().declined}
    assert "HOP_UNSUPPORTED" not in codes


class Masked(nn.Module):
    """Its block mask is made in every call, from a captured length of each item."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.register_buffer("lengths", torch.tensor([5, 7]))

    def forward(self, x):
        n = x.shape[1]
        q, k, v = (y(x).unflatten(-1, (2, 4)).transpose(1, 2) for y in (self.q, self.k, self.v))
        lengths = self.lengths
        mask = create_block_mask(
            lambda b, h, i, j: (i >= j) & (j < lengths[b]), 2, None, n, n, device="cpu"
        )
        return flex_attention(q, k, v, block_mask=mask)


def test_a_block_mask_that_is_made_inside_is_no_write():
    """The form runs at every length, symbolic ones included (strict)."""
    torch._dynamo.reset()
    attnpass.reset_report()
    model = Masked().eval()
    options = {"form": "softmax", "inner": "eager", "strict": True}
    run = torch.compile(model, backend="attnpass", options=options)
    with torch.no_grad():
        for n in (7, 9, 5):
            x = torch.randn(2, n, 8)
            assert torch.allclose(run(x), model(x), atol=1e-5)
    assert list(attnpass.compiled_report().rewritten.values()) == ["softmax"]
