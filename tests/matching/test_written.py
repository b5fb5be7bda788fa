"""What is written in place on the way through an attention: the compiled model is eager's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attnpass

Q, K, V = (torch.randn(1, 4, n, 8, dtype=torch.float64) for n in (5, 5, 5))


def through(write):
    def run(q, k, v):
        s = q @ k.mT
        write(s)
        return s.softmax(-1) @ v

    return run


LOGITS = {
    "diagonal": lambda s: s.diagonal(dim1=-2, dim2=-1).fill_(-1e30),
    "transposed": lambda s: s.mT.masked_fill_(torch.ones(5, 5).triu(1) > 0, -1e30),
    "chunk": lambda s: s.chunk(2, -1)[0].mul_(3.0),
    "unbind": lambda s: s.unbind(-1)[2].zero_(),
    "narrow": lambda s: s.narrow(-1, 1, 2).add_(2.0),
    "another dtype": lambda s: s[..., 2].add_(torch.ones(1, 4, 5, dtype=torch.float32)),
    "a list": lambda s: torch._foreach_mul_([s], 3.0),
    "detached": lambda s: s.detach().mul_(0.5),
    "index": lambda s: s.index_fill_(-1, torch.tensor([1, 2]), -1e30),
}


def after(write):
    def run(q, k, v):
        w = (q @ k.mT).softmax(-1)
        write(w)
        return w @ v

    return run


def repeated(x, how):
    if how == "interleave":
        return x.repeat_interleave(2, 1)
    b, g, s, d = x.shape
    return x[:, :, None].expand(b, g, 2, s, d).reshape(b, 2 * g, s, d)


def grouped(how, which, place):
    """Four queries' heads over two; keys or values change after they were repeated."""

    def run(q, k, v):
        k, v = k[:, :2] * 1.0, v[:, :2] * 1.0
        many = repeated(k, how), repeated(v, how)
        if place == "fused":
            (k, v)[which].mul_(torch.full((), 0.5, dtype=torch.float32))
            return F.scaled_dot_product_attention(q, *many)
        if place == "before":
            (k, v)[which].mul_(torch.full((), 0.5, dtype=torch.float32))
        s = q @ many[0].mT
        if place == "between":
            (k, v)[which].mul_(torch.full((), 0.5, dtype=torch.float32))
        w = s.softmax(-1)
        if place == "behind":
            (k, v)[which].mul_(torch.full((), 0.5, dtype=torch.float32))
        return w @ many[1]

    return run


PROGRAMS = {f"logits, {name}": through(write) for name, write in LOGITS.items()}
PROGRAMS |= {f"weights, {name}": after(write) for name, write in LOGITS.items()}
PROGRAMS |= {
    f"{how} {'kv'[which]} {place}": grouped(how, which, place)
    for how in ("interleave", "expand")
    for which in (0, 1)
    for place in ("before", "between", "behind", "fused")
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_softmax_put_back_is_what_eager_computes(name):
    torch._dynamo.reset()
    run = PROGRAMS[name]
    options = {"form": "softmax", "inner": "eager"}
    compiled = torch.compile(run, backend="attnpass", options=options)
    with torch.no_grad():
        want, got = (f(*(x.clone() for x in (Q, K, V))) for f in (run, compiled))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("batches", [(2, 3), (1, 2, 4)])
def test_an_index_that_is_written_holds_at_every_batch(batches):
    torch._dynamo.reset()
    i = torch.tensor([1, 2])

    def run(q, k, v):
        s = q @ k.mT
        s[:, :, i] = -1e30
        return s.softmax(-1) @ v

    options = {"form": "softmax", "inner": "eager"}
    compiled = torch.compile(run, backend="attnpass", options=options)
    for b in batches:
        given = [torch.randn(b, 2, 5, 4, dtype=torch.float64) for _ in range(3)]
        torch.testing.assert_close(compiled(*given), run(*given), rtol=0, atol=1e-12)


class Cached(nn.Module):
    """A cache in buffers, written by slice, behind logits that no reader knows."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.register_buffer("keys", torch.zeros(2, 6, 8))
        self.register_buffer("values", torch.zeros(2, 6, 8))

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        self.keys[:, : x.shape[1]] = k
        self.values[:, : x.shape[1]] = v
        return (q @ self.keys.mT).sinh().softmax(-1) @ self.values


def test_a_cache_that_is_filled_holds_activations():
    model, x = Cached().eval().double(), torch.randn(2, 4, 8, dtype=torch.float64)
    with torch.no_grad():
        (site,) = attnpass.find_sites(model, x).sites
        assert site.degree == "logits"
        want = model(x)
        torch._dynamo.reset()
        options = {"form": "softmax", "inner": "eager", "strict": True}
        got = torch.compile(model, backend="attnpass", options=options)(x)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


class Held(nn.Module):
    """A mask in a buffer that is written in the same call, before it is read."""

    def __init__(self, write, fused=False):
        super().__init__()
        self.qkv, self.write, self.fused = nn.Linear(8, 24), write, fused
        self.register_buffer("keep", torch.ones(5, 5, dtype=torch.bool))
        self.register_buffer("bias", torch.zeros(5, 5))

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        mask = self.write(self, x)
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        s = q @ k.mT * 0.3
        s = s.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else s + mask
        return s.softmax(-1) @ v


def copied(m, x):
    m.keep.copy_(torch.ones(5, 5, dtype=torch.bool).tril())
    return m.keep


def copied_and_cloned(m, x):
    m.keep.copy_(torch.ones(5, 5, dtype=torch.bool).tril())
    return m.keep.clone()


def lowered(m, x):
    m.keep.tril_()
    return m.keep


def filled(m, x):
    m.bias.zero_().masked_fill_(torch.ones(5, 5, dtype=torch.bool).triu(1), -torch.inf)
    return m.bias


def by_slice(m, x):
    m.keep[1:, 0] = x[0, 0, 0] > 0
    return m.keep


def counted(m, x):
    m.bias.add_(1.0)
    return torch.where(m.bias > 2, -torch.inf, 0.0).tril(-1)


def of_data(m, x):
    m.keep.copy_(x[0, :, :1] > x[0, :, 1]).logical_or_(torch.eye(5, dtype=torch.bool))
    return m.keep


MASKS = [copied, copied_and_cloned, lowered, filled, by_slice, counted, of_data]


@pytest.mark.parametrize("write", MASKS)
@pytest.mark.parametrize("fused", [False, True])
def test_a_mask_that_is_written_in_the_same_call_is_no_constant(write, fused):
    """Every call computes eager's result, also where what is written differs each time."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    models = [Held(write, fused).eval().double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    options = {"form": "softmax", "inner": "eager"}
    run = torch.compile(models[1], backend="attnpass", options=options)
    with torch.no_grad():
        for _ in range(4):
            x = torch.randn(2, 5, 8, dtype=torch.float64)
            torch.testing.assert_close(run(x), models[0](x), rtol=0, atol=1e-12)
        report = attnpass.find_sites(models[0], x)
    assert all(s.degree == "logits" and s.mask == {"arbitrary"} for s in report.sites)
    found = [*report.declined, *(s.legal["hydra"] for s in report.sites)]
    assert [d.code for d in found] == ["MUTATED_ALIAS"]


def test_a_mask_that_is_made_in_the_call_is_still_read():
    """The nearest case without a write to a buffer."""

    def fresh(m, x):
        mask = torch.empty(5, 5, dtype=torch.bool, device=x.device)
        mask.copy_(torch.ones(5, 5, dtype=torch.bool).tril())
        return mask

    torch._dynamo.reset()
    model, x = Held(fresh).eval().double(), torch.randn(2, 5, 8, dtype=torch.float64)
    with torch.no_grad():
        (site,) = attnpass.find_sites(model, x).sites
    assert site.mask == {"causal"} and site.degree != "logits"
