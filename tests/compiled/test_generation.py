"""A converted layer computes its form at prefill and at every step, as without a cache."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import attnpass

TOKENS, PREFILL = 10, 5


def llama():
    """Grouped queries, rotary positions."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=100, **sizes, **heads)).eval()


def gpt2():
    """One projection for queries, keys and values; learned positions."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4)).eval()


def sliding():
    """The same with a window: the cache forgets what lies before it."""
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 4}
    return MistralForCausalLM(MistralConfig(vocab_size=100, **sizes, **heads)).eval()


class Text:
    """Two texts, the second padded on the left."""

    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        self.ids = torch.randint(3, 100, (2, TOKENS), generator=generator)
        self.mask = torch.ones_like(self.ids)
        self.mask[1, :2] = 0

    def part(self, a, b, **more):
        """The arguments for the tokens from a to b, with all before them visible."""
        positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        return {
            "input_ids": self.ids[:, a:b],
            "position_ids": positions[:, a:b],
            "attention_mask": self.mask[:, :b],
            **more,
        }

    def reordered(self, order):
        """Another order of the texts, as beam search makes it."""
        self.ids, self.mask = self.ids[order], self.mask[order]


def reorder(text, past, seen):
    """Beam search: another order of the texts, of the cache, and of what came before."""
    order = torch.tensor([1, 0])
    past.reorder_cache(order)
    text.reordered(order)
    return [x[order] for x in seen]


def crop(text, past, seen):
    """Speculative decoding: two tokens are taken back, and come once more."""
    past.crop(-2)
    return seen


CASES = [
    *((make, False, change) for make in (llama, gpt2) for change in (reorder, crop)),
    *((make, True, reorder) for make in (llama, gpt2, sliding)),
    (sliding, False, reorder),
]
"""A model, whether its cache is static, and what happens to the cache between two steps."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make, static, change", CASES)
def test_steps_with_a_cache_equal_the_whole_sequence(make, static, change):
    """Left padding, one form throughout (strict), also where the cache is written in place."""
    from transformers import StaticCache

    torch.manual_seed(0)
    model, text = make(), Text()
    options = {"form": "sigmoid", "inner": "eager", "strict": True}
    run = torch.compile(model, backend="attnpass", options=options)
    with torch.no_grad():
        want = run(**text.part(0, TOKENS, use_cache=False)).logits
        eager = model(**text.part(0, TOKENS, use_cache=False)).logits
        torch._dynamo.reset()
        attnpass.reset_report()
        past = StaticCache(config=model.config, max_cache_len=TOKENS + 3) if static else None
        out = run(**text.part(0, PREFILL, use_cache=True, past_key_values=past))
        got, past, t = out.logits, out.past_key_values, PREFILL
        while t < TOKENS:
            if t == PREFILL + 2 and change is not None:
                got, want, eager = change(text, past, [got, want, eager])
                t, change = int(past.get_seq_length()), None
            out = run(**text.part(t, t + 1, past_key_values=past, use_cache=True))
            got, past, t = torch.cat([got[:, :t], out.logits], 1), out.past_key_values, t + 1
    seen, report = text.mask.bool(), attnpass.compiled_report()
    assert (want - eager)[seen].abs().max() > 1e-2
    assert (got - want)[seen].abs().max() < 1e-5
    assert len(report.rewritten) == 2


class Layer(nn.Module):
    """Attention with a growing cache, keys and values ``[B, H, S, d]``."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(24, 72)

    def forward(self, x, past=None):
        q, k, v = (y.unflatten(-1, (4, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        i = torch.arange(x.shape[1])[:, None] + (k.shape[2] - x.shape[1])
        s = (q @ k.mT * 0.4).masked_fill(torch.arange(k.shape[2]) > i, -torch.inf)
        return (s.softmax(-1) @ v).transpose(1, 2).flatten(2), (k, v)


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("cuts", [(0, 1, 2, 5), (0, 1, 3, 4), (0, 2, 3, 5), (0, 3, 4, 5)])
def test_a_cache_of_any_length_belongs_to_self_attention(cuts, dynamic):
    """Also of one token, whose axis torch does not tell from other axes of size 1."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = Layer().eval(), torch.randn(2, 5, 24)
    plan = attnpass.Plan.create(model, x, form="sigmoid")
    options = {"plan": plan, "inner": "eager", "strict": True}
    run = torch.compile(model, backend="attnpass", options=options, dynamic=dynamic)
    with torch.no_grad():
        want, (past, parts) = run(x)[0], (None, [])
        for a, b in itertools.pairwise(cuts):
            out, past = run(x[:, a:b], past)
            parts.append(out)
    assert (torch.cat(parts, 1) - want[:, : cuts[-1]]).abs().max() < 1e-5
