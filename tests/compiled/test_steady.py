"""An attention that changes its form from call to call, or falls back, is said once or raised."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.config as dynamo
from compiling import build, compiled, data
from torch import nn

from attnpass import Plan
from attnpass.errors import PlanError


def raised(error) -> str:
    """The message of an error, inside Dynamo's own or not."""
    return str(getattr(error.value, "inner_exception", error.value))


class Sometimes(nn.Module):
    """Attention, or a softmax off by two over the same logits, if asked to."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(24, 72)

    def forward(self, x, odd=False):
        q, k, v = self.qkv(x).chunk(3, -1)
        s = q @ k.mT * 0.2
        return (s.softmax(-1) if not odd else s.exp() / (2 + s.exp().sum(-1, True))) @ v


def run(strict):
    torch._dynamo.reset()
    model = compiled(Sometimes().eval(), form="sigmoid", strict=strict)
    with torch.no_grad():
        model(data())
        model(data(), odd=True)
        model(data(1), odd=True)


def test_a_form_that_comes_and_goes_is_said_once(caplog):
    run(strict=False)
    told = [r.getMessage() for r in caplog.records if "as in an earlier call" in r.getMessage()]
    assert len(told) == 1 and "run as sigmoid" in told[0] and "UNKNOWN_SOFTMAX" in told[0]


def test_strict_raises_it():
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as error:
        run(strict=True)
    assert isinstance(error.value.inner_exception, PlanError)
    assert "got softmax in this one" in raised(error)


class Cached(nn.Module):
    """Attention that at first reads what it computes, then a cache that it writes in place.

    The softmax is then off by two, so that it stays as it is. ``known``: the second kind of call
    reads keys of other tokens and has no use for their weights.
    """

    def __init__(self, known=False):
        super().__init__()
        self.known = known
        self.q, self.k, self.v = (nn.Linear(24, 24) for _ in range(3))
        self.register_buffer("keys", torch.randn(2, 5, 24))
        self.register_buffer("values", torch.randn(2, 5, 24))

    def forward(self, x, cached=False):
        q = self.q(x)
        if not cached:
            k, v = self.k(x), self.v(x)
        elif self.known:
            k, v = self.keys.add_(0.0), self.values
        else:
            k, v = self.keys.copy_(self.k(x)), self.values.copy_(self.v(x))
        s = q @ k.mT * 0.2
        return (s.softmax(-1) if not cached else s.exp() / (2 + s.exp().sum(-1, True))) @ v


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("by", ["form", "plan"])
@pytest.mark.parametrize("cached_first", [False, True])
def test_a_call_that_reads_a_cache_is_no_other_attention(known, by, cached_first):
    """The buffers come to the graph's inputs, and some weights may leave them."""
    torch._dynamo.reset()
    model, x = Cached(known).eval(), data()
    plan = Plan.create(model, x, form="sigmoid")
    torch._dynamo.reset()
    options = {"form": "sigmoid"} if by == "form" else {"plan": plan}
    run = compiled(model, strict=True, **options)
    with torch.no_grad(), pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as error:
        for cached in (cached_first, not cached_first):
            run(x, cached)
    assert isinstance(error.value.inner_exception, PlanError)
    if by == "form":  # a plan says already at the first call what it misses
        assert "as in an earlier call" in raised(error)


def test_lengths_and_batches_change_nothing(caplog):
    torch._dynamo.reset()
    model = compiled(build(2), form="sigmoid", strict=True)
    with torch.no_grad():
        for tokens in (5, 6, 9):
            model(data(tokens, tokens))
    assert "earlier call" not in caplog.text


@pytest.mark.parametrize("strict", [False, True])
def test_the_limit_of_recompiles_is_said_or_raised(strict, caplog):
    torch._dynamo.reset()
    caplog.set_level("WARNING", logger="torch._dynamo.convert_frame")
    options = {"form": "sigmoid", "inner": "eager", "strict": strict}
    run = torch.compile(build(1), backend="attnpass", options=options, dynamic=False)

    def calls():
        with torch.no_grad(), dynamo.patch(recompile_limit=2):
            for tokens in range(2, 7):
                run(data(1, tokens))

    if strict:
        with pytest.raises(PlanError, match=r"blocks\.0\.attn runs unchanged"):
            calls()
    else:
        calls()
        assert caplog.text.count("blocks.0.attn runs unchanged from now on") == 1
