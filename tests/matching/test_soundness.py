"""Every numbered condition of a prover: a program that it refuses, and that it would not without.

The condition is removed by a mutation of the source: the ``raise`` that names it becomes a no-op.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import re

import house
import pytest
import torch
from models import Attention, scores_of, weighted
from torch import nn

import attnpass

PROVERS = ("chain", "map_axes", "logits", "reader", "verdicts")
"""Modules whose conditions are refusals."""


class Core(Attention):
    """Attention with a few more parameters for strange programs, behind a convolution."""

    def __init__(self, core):
        super().__init__(core)
        self.patches = nn.Conv1d(24, 24, 3, padding=1)
        self.mix = nn.Linear(6, 6, bias=False)
        self.plane = nn.Parameter(torch.rand(6, 6) + 0.5)
        self.sink = nn.Parameter(torch.zeros(self.H, 1, 1))

    def forward(self, x):
        return super().forward(self.patches(x.transpose(1, 2)).transpose(1, 2))


class Fused(nn.Module):
    """The fused operator on the arguments themselves."""

    def forward(self, q, k, v):
        return nn.functional.scaled_dot_product_attention(q, k, v)


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


def values_written(q, k, v, m, mod):
    weights = scores_of(q, k).softmax(-1)
    v = v.contiguous() * 1.0
    out = weights @ v
    v.diagonal(dim1=-2, dim2=-1).mul_(3.0)
    return out + 0.1 * v


CASES = {
    "chain 1": routed,
    "chain 2": pooled_softmax,
    "chain 3": column_maximum,
    "chain 4": gradients_switched,
    "chain 5": written_scores,
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
    "reader 1": Fused,
    "reader 2": other_heads,
    "reader 3": squared_weights,
    "reader 4": summed_over_rows,
    "reader 5": sink_kept,
    "reader 6": channel,
    "reader 7": over_heads,
    "reader 8": one_value_head,
    "reader 9": one_value,
    "reader 10": two_axes_of_heads,
    "reader 11": values_written,
    "verdicts 1": FastPath,
}
"""Condition -> a program that does not meet it."""


def refused(program) -> set[str]:
    """The conditions that a program's look-alikes are declined by."""
    torch.manual_seed(0)
    x = torch.randn(2, 6, 24)
    if program is Fused:
        q = torch.randn(2, 4, 6, 8)
        capture = attnpass.Capture(Fused(), dynamic=True).trace(q, q + 1, q + 2)
        return {d.condition for d in capture.declined}
    model = FastPath().eval() if program is FastPath else Core(program).train()
    return {d.condition for d in attnpass.find_sites(model, x).declined}


class Removal(ast.NodeTransformer):
    """Takes out the statements that name a condition."""

    def __init__(self, condition: str) -> None:
        self.condition, self.count = condition, 0

    def names(self, node: ast.AST) -> bool:
        constants = (x.value for x in ast.walk(node) if isinstance(x, ast.Constant))
        return any(value == self.condition for value in constants)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, (ast.Raise, ast.Return, ast.Expr)) and self.names(node):
            self.count += 1
            return ast.copy_location(ast.Pass(), node)
        return super().generic_visit(node)


def functions(namespace: dict) -> dict[str, object]:
    """The functions and methods that a module defines, by qualified name."""
    own = [x for x in namespace.values() if getattr(x, "__module__", "") == namespace["__name__"]]
    methods = [y for x in own if isinstance(x, type) for y in vars(x).values()]
    plain = [x for x in (*own, *methods) if inspect.isfunction(x)]
    return {x.__qualname__: x for x in plain}


@contextlib.contextmanager
def without(condition: str):
    """Inside, the prover does not check a condition."""
    module = importlib.import_module(f"attnpass.matching.{condition.split()[0]}")
    removal = Removal(condition)
    tree = ast.fix_missing_locations(removal.visit(ast.parse(inspect.getsource(module))))
    assert removal.count > 0, f"no statement names {condition}"
    changed = {"__name__": module.__name__}
    exec(compile(tree, module.__file__, "exec"), changed)
    old, new = functions(vars(module)), functions(changed)
    kept = {name: f.__code__ for name, f in old.items()}
    try:
        for name, f in old.items():
            f.__code__ = new[name].__code__
        yield
    finally:
        for name, f in old.items():
            f.__code__ = kept[name]


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


def numbered(text: str) -> list[int]:
    """The numbers of the conditions in a Soundness section."""
    section = text[text.index("Soundness") :]
    return [int(n) for n in re.findall(r"^(\d+)\. ", section, re.M)]


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
            assert known and (known[1] is None or known[1] in PROVERS), f"{path}: Refuse({call}"


if __name__ == "__main__":
    for condition, core in CASES.items():
        try:
            print(condition, core.__name__, refused(core))
        except Exception as error:
            print(condition, core.__name__, "ERROR", type(error), str(error)[:200])
