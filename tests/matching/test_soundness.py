"""Every numbered condition of a prover: a program that it refuses, and that it would not without.

The condition is removed by a mutation of the source: the ``raise`` that names it becomes a no-op.
"""

from __future__ import annotations

import importlib
import inspect
import re

import house
import pytest
import torch
from models import scores_of, weighted
from provers import Core, numbered, without
from torch import nn

import attnpass

PROVERS = ("chain", "map_axes", "logits", "reading", "reader", "verdicts")
"""Modules whose conditions are refusals."""


class Fused(nn.Module):
    """The fused operator on the arguments themselves."""

    def forward(self, q, k, v):
        return nn.functional.scaled_dot_product_attention(q, k, v)


class FusedScaled(nn.Module):
    """The same with a scale that no head dim decides."""

    def forward(self, q, k, v):
        return nn.functional.scaled_dot_product_attention(q, k, v, scale=0.5)


class FastPath(nn.Module):
    """The operator of an inference fast path that cannot be opened."""

    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(24, 4, batch_first=True)

    def forward(self, x):
        a = self.attn
        weights = (a.in_proj_weight, a.in_proj_bias, a.out_proj.weight, a.out_proj.bias)
        return torch._native_multi_head_attention(x, x, x, 24, 4, *weights)[0]


def column_maximum(q, k, v, m, mod):
    scores = scores_of(q, k)
    return weighted(scores - scores.amax(-2, keepdim=True), v)


def gradients_switched(q, k, v, m, mod):
    with torch.no_grad():
        weights = scores_of(q, k).softmax(-1)
    return weights @ v


def written_scores(q, k, v, m, mod):
    """A tensor of another dtype is added in place: no functional operator does the same."""
    scores = scores_of(q, k)
    same = scores.mT.mT
    scores.add_(mod.plane.double())
    return weighted(same, v)


def scores_written_later(q, k, v, m, mod):
    scores = scores_of(q, k)
    out = weighted(scores, v)
    scores.add_(mod.plane.double())
    return out + scores.mean()


def pooled_softmax(q, k, v, m, mod):
    return scores_of(q, k).softmax(-1).sum(-1, keepdim=True) * v


def routed(q, k, v, m, mod):
    return mod.mix(v.transpose(-2, -1)).softmax(-1).transpose(-2, -1)


def flat_scores(q, k, v, m, mod):
    """Rows of tokens and heads together against keys: three own axes."""
    scores = torch.einsum("bhtd,bgsd->bhgts", q, k)
    return torch.einsum("bhgts,bgsd->bhtd", scores.softmax(-1), v)


def over_heads_of_map(q, k, v, m, mod):
    return scores_of(q, k).softmax(1) @ v


def tokens_mixed(q, k, v, m, mod):
    scores = scores_of(q, k)
    mixed = mod.mix(scores.permute(0, 1, 3, 2)).permute(0, 1, 3, 2)
    return mixed.softmax(-1) @ v


def viewed_tokens_first(q, k, v, m, mod):
    scores = scores_of(q, k).permute(2, 3, 0, 1)
    viewed = scores.unsqueeze(0).squeeze(0)
    return viewed.permute(2, 3, 0, 1).softmax(-1) @ v


def halves(q, k, v, m, mod):
    """Softmax within halves of the keys."""
    scores = scores_of(q, k)
    B, H, T, S = scores.shape
    return scores.reshape(B, H, 2 * T, S // 2).softmax(-1).reshape(B, H, T, S) @ v


def changed_after_sink(q, k, v, m, mod):
    s = scores_of(q, k)
    sink = mod.sink.expand(s.shape[0], -1, s.shape[2], 1)
    return (torch.cat([s, sink], -1) * 2.0).softmax(-1)[..., :-1] @ v


def transposed_mask(q, k, v, m, mod):
    s = (k @ q.transpose(-2, -1)) * 0.5
    s = s + mod.plane
    return torch.einsum("bhst,bhsd->bhtd", s.softmax(-2), v)


def scaled_away(q, k, v, m, mod):
    lower = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    return weighted(scores_of(q, k).masked_fill(~lower, -2e4) * 1e-4, v)


def plane_factor(q, k, v, m, mod):
    return weighted(scores_of(q, k) * mod.plane, v)


def heads_and_batch_swapped(q, k, v, m, mod):
    s = scores_of(q, k)
    B, H, T, S = s.shape
    return s.reshape(H, B, T, S).softmax(-1).reshape(B, H, T, S) @ v


def mask_written(q, k, v, m, mod):
    bias = mod.lower[0, 0, :6, :6]
    mod.lower.add_(1.0)
    return weighted(scores_of(q, k) + bias, v)


def mask_written_later(q, k, v, m, mod):
    bias = mod.lower[0, 0, :6, :6]
    scores = scores_of(q, k) + bias
    mod.lower.add_(1.0)
    return weighted(scores, v)


def other_heads(q, k, v, m, mod):
    weights = scores_of(q, k).softmax(-1)
    return weights.flatten(0, 1).unflatten(0, (1, -1)) @ v.flatten(0, 1).unsqueeze(0)


def squared_weights(q, k, v, m, mod):
    p = scores_of(q, k).softmax(-1)
    return (p @ p) @ v


def summed_over_rows(q, k, v, m, mod):
    return scores_of(q, k).softmax(-1).transpose(-2, -1) @ v


def sink_kept(q, k, v, m, mod):
    s = scores_of(q, k)
    sink = mod.sink.expand(s.shape[0], -1, s.shape[2], 1)
    return torch.cat([s, sink], -1).softmax(-1)[..., 1:] @ v


def channel(q, k, v, m, mod):
    return (v @ (q.mT @ k * 0.3).softmax(-1)).contiguous()


def over_heads(q, k, v, m, mod):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, T, H, d]
    return ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2)


def one_value_head(q, k, v, m, mod):
    return scores_of(q, k).softmax(-1) @ v[:, :1]


def one_value(q, k, v, m, mod):
    """einsum repeats an axis of size 1: every key has the first one's value."""
    return torch.einsum("bhts,bhsd->bhtd", scores_of(q, k).softmax(-1), v[:, :, :1])


def two_axes_of_heads(q, k, v, m, mod):
    """Queries have one more axis of heads than keys, and it is not the last one."""
    q = q.unflatten(1, (2, 2))
    weights = torch.einsum("bghtd,bhsd->bghts", q, k[:, :2]).softmax(-1)
    return torch.einsum("bghts,bhsd->bghtd", weights, v[:, :2]).flatten(1, 2)


def off_by_two(q, k, v, m, mod):
    e = scores_of(q, k).exp()
    return (e / (2 + e.sum(-1, keepdim=True))) @ v


def queries_written(q, k, v, m, mod):
    """The queries change between their product and the result, by no functional operator."""
    q = q * 1.0
    scores = scores_of(q, k)
    q.add_(mod.plane.double())
    return weighted(scores, v)


CASES = {
    "chain 1": routed,
    "chain 2": pooled_softmax,
    "chain 3": column_maximum,
    "chain 4": gradients_switched,
    "reader 5": written_scores,
    "map_axes 1": flat_scores,
    "map_axes 2": over_heads_of_map,
    "map_axes 3": tokens_mixed,
    "map_axes 4": viewed_tokens_first,
    "map_axes 5": halves,
    "logits 1": changed_after_sink,
    "logits 2": transposed_mask,
    "logits 3": scaled_away,
    "logits 4": plane_factor,
    "logits 5": heads_and_batch_swapped,
    "logits 6": mask_written,
    "reading 1": Fused,
    "reader 1": FusedScaled,
    "reading 2": other_heads,
    "reading 3": squared_weights,
    "reading 4": summed_over_rows,
    "reading 5": sink_kept,
    "reading 6": channel,
    "reading 7": over_heads,
    "reader 2": one_value_head,
    "reader 3": one_value,
    "reading 8": two_axes_of_heads,
    "reader 4": queries_written,
    "verdicts 1": FastPath,
    "verdicts 2": off_by_two,
}
"""Condition -> a program that does not meet it."""


def refused(program) -> set[str]:
    """The conditions that a program's look-alikes are declined by."""
    torch.manual_seed(0)
    x = torch.randn(2, 6, 24)
    if program in (Fused, FusedScaled):
        q = torch.randn(2, 4, 6, 8)
        capture = attnpass.Capture(program(), dynamic=True).trace(q, q + 1, q + 2)
        return {d.condition for d in capture.declined}
    model = FastPath().eval() if program is FastPath else Core(program).train()
    report = attnpass.find_sites(model, x)
    less = [s.legal["hydra"] for s in report.sites if s.degree == "logits"]
    return {d.condition for d in (*report.declined, *less)}


def test_a_mask_that_is_written_after_it_was_read_is_refused_too():
    assert refused(mask_written_later) == {"reader 4"}


def test_logits_that_are_written_after_the_attention_do_not_refuse_it():
    assert refused(scores_written_later) == set()
    model, x = Core(scores_written_later), torch.randn(2, 6, 24)
    torch._dynamo.reset()
    options = {"form": "softmax", "strict": True, "inner": "eager"}
    run = torch.compile(model, backend="attnpass", options=options)
    for y in (x, 2 * x):
        assert torch.allclose(run(y), model(y), atol=1e-5)


@pytest.mark.parametrize("condition", CASES)
def test_a_program_that_breaks_a_condition_is_refused_by_it_alone(condition):
    assert refused(CASES[condition]) == {condition}
    torch._dynamo.reset()
    with without(condition):
        try:
            after = refused(CASES[condition])
        except Exception as error:
            after = {type(error).__name__}
    assert condition not in after


@pytest.mark.parametrize("name", PROVERS)
def test_every_condition_is_stated_numbered_and_has_a_case(name):
    module = importlib.import_module(f"attnpass.matching.{name}")
    stated = numbered(module.__doc__)
    assert stated == list(range(1, len(stated) + 1))
    named = set(re.findall(rf'"{name} (\d+)"', inspect.getsource(module)))
    assert {int(n) for n in named} == set(stated)
    assert {c for c in CASES if c.split()[0] == name} == {f"{name} {n}" for n in stated}


def test_no_refusal_is_without_a_condition():
    for path in (house.ROOT / "attnpass").rglob("*.py"):
        for call in re.findall(r"Refuse\(\s*([^,)]*),", path.read_text()):
            known = re.fullmatch(r'"(\w+) \d+"|condition|Exception', call.strip())
            assert known and (known[1] is None or known[1] in (*PROVERS, "normaliser")), (
                f"{path}: Refuse({call}"
            )
