"""Without options: exact softmax by the quicker implementation, equal to eager within rounding."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attnpass
from attnpass.kernels import select

WIDTH, HEADS = 64, 4

CASES = ("plain", "sdpa", "causal", "fill", "minus inf", "bias", "grouped")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models are large enough."""
    for name in ("SOFTMAX_SCORES", "TRAINED_SCORES"):
        monkeypatch.setattr(select, name, {torch.float32: 4096})
    monkeypatch.setattr(select, "FEW_SCORES", 512)


class Attention(nn.Module):
    """Self attention as ``case`` spells it."""

    def __init__(self, case: str, dropout: float = 0.0) -> None:
        super().__init__()
        self.case, self.dropout = case, dropout
        self.kv_heads = 2 if case == "grouped" else HEADS
        d = WIDTH // HEADS
        self.q, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k = nn.Linear(WIDTH, self.kv_heads * d)
        self.v = nn.Linear(WIDTH, self.kv_heads * d)
        self.bias = nn.Parameter(torch.randn(HEADS, 1, 1))

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Any:
        d = WIDTH // HEADS
        q, k, v = (p(x).unflatten(-1, (-1, d)).transpose(1, 2) for p in (self.q, self.k, self.v))
        if self.case == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v)
            return self.o(y.transpose(1, 2).flatten(2))
        k, v = (y.repeat_interleave(HEADS // self.kv_heads, 1) for y in (k, v))
        s = q @ k.transpose(-1, -2) * d**-0.5
        rows = torch.arange(x.shape[1])
        if self.case == "causal":
            s = s.masked_fill(rows[:, None] < rows, -math.inf)
        if self.case == "bias":
            s = s - self.bias * (rows[:, None] - rows).abs()
        if keep is not None:
            fill = -math.inf if self.case == "minus inf" else -1e9
            s = s.masked_fill(~keep[:, None, None], fill)
        p = F.dropout(s.softmax(-1), self.dropout, self.training)
        y = self.o((p @ v).transpose(1, 2).flatten(2))
        return (y, p) if self.case == "weights" else y


def compiled(model: nn.Module, **options: Any) -> Any:
    torch._dynamo.reset()
    attnpass.reset_report()
    return torch.compile(model, backend="attnpass", options={"inner": "eager", **options})


def close(got: Tensor, want: Tensor, largest: Tensor | None = None) -> None:
    got, want = got.detach().double(), want.detach().double()
    largest = want.abs().max() if largest is None else largest
    assert (got - want).abs().max() < 2e-5 * largest


@pytest.mark.parametrize("case", CASES)
def test_results_and_gradients_are_those_of_the_model(case: str) -> None:
    torch.manual_seed(0)
    model, x = Attention(case), torch.randn(2, 70, WIDTH, requires_grad=True)
    keep = torch.arange(70)[None] < torch.tensor([[70], [41]]) if case[0] in "fm" else None
    out = compiled(model)(x, keep)
    assert list(attnpass.compiled_report().rewritten.values()) == ["softmax"]
    grad = torch.randn_like(out)
    leaves = [x, *(p for n, p in model.named_parameters() if case == "bias" or n != "bias")]
    got = torch.autograd.grad(out, leaves, grad)
    model.double()
    y = x.detach().double().requires_grad_()
    want = model(y, keep)
    close(out, want)
    exact = [y, *(p for n, p in model.named_parameters() if case == "bias" or n != "bias")]
    wanted = torch.autograd.grad(want, exact, grad.double())
    # that of the keys' bias is 0, a difference of large numbers
    largest = torch.stack([g.abs().max() for g in wanted]).max()
    for a, b in zip(got, wanted, strict=True):
        close(a, b, largest)


def test_rows_without_a_kept_key_are_those_of_the_model() -> None:
    model, x = Attention("fill").eval(), torch.randn(2, 70, WIDTH)
    keep = torch.arange(70)[None] < torch.tensor([[70], [0]])
    with torch.no_grad():
        close(compiled(model)(x, keep), model.double()(x.double(), keep))


def test_every_length_of_one_symbolic_graph() -> None:
    model = Attention("causal").eval()
    run = compiled(model)
    with torch.no_grad():
        for length in (80, 90, 128, 300, 33, 2, 1):
            x = torch.randn(2, length, WIDTH)
            close(run(x), model(x))
    assert "softmax" in attnpass.compiled_report().rewritten.values()


@pytest.mark.parametrize(("case", "length", "dropout"), [("plain", 20, 0.0), ("weights", 70, 0.0),
                                                         ("plain", 70, 0.3)])  # fmt: skip
def test_left_alone(case: str, length: int, dropout: float) -> None:
    model, x = Attention(case, dropout).train(), torch.randn(2, length, WIDTH)
    torch.manual_seed(1)
    got = compiled(model)(x)
    assert not attnpass.compiled_report().rewritten
    torch.manual_seed(1)
    want = model(x)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_form_none_leaves_every_graph_alone() -> None:
    model, x = Attention("plain"), torch.randn(2, 70, WIDTH)
    torch.testing.assert_close(compiled(model, form="none")(x), model(x), rtol=0, atol=0)
    assert not attnpass.compiled_report().graphs


def test_form_none_stands_alone() -> None:
    with pytest.raises(Exception, match="expected form 'none' alone, got form_options"):
        compiled(Attention("plain"), form="none", form_options={"L": 3})(torch.randn(1, 70, WIDTH))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Attention("plain"), Attention("causal")

    def forward(self, x: Tensor) -> Any:
        return self.second(self.first(x))


def test_what_a_plan_leaves_softmax_runs_by_the_kernel_too(tmp_path: Any) -> None:
    model, x = Two().eval(), torch.randn(2, 70, WIDTH)
    plan = attnpass.Plan.create(model, x, form="sigmoid", sites="first*")
    run = compiled(model, plan=str(plan.save(tmp_path / "plan.json")), strict=True)
    with torch.no_grad():
        close(run(x), attnpass.convert(model, plan, x)(x))
    assert list(attnpass.compiled_report().rewritten.values()) == ["sigmoid", "softmax"]
    assert attnpass.compiled_report().plan == plan.hash


@pytest.mark.parametrize("queries", [1, 5, 16])
def test_few_queries_against_a_cache(queries: int) -> None:
    class Step(Attention):
        def forward(self, x: Tensor, cache: Tensor) -> Any:  # type: ignore[override]
            d = WIDTH // HEADS
            q, k, v = (
                p(x).unflatten(-1, (-1, d)).transpose(1, 2) for p in (self.q, self.k, self.v)
            )
            k, v = (torch.cat([c, new], 2) for c, new in zip(cache, (k, v), strict=True))
            y = F.scaled_dot_product_attention(q, k, v)
            return self.o(y.transpose(1, 2).flatten(2))

    model = Step("plain").eval()
    run = compiled(model)
    with torch.no_grad():
        for length in (100, 101, 102, 300):
            x, cache = torch.randn(2, queries, WIDTH), torch.randn(2, 2, HEADS, length, 16)
            close(run(x, cache), model.double()(x.double(), cache.double()))
            model.float()
    assert list(attnpass.compiled_report().rewritten.values()) == ["softmax"]
