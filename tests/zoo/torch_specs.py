"""torch.nn's own attention, with the fast path of evaluation and without."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zoo import EAGER, SDPA, Built, add, noise, padding

LAYER = {"d_model": 32, "nhead": 4, "dim_feedforward": 48, "batch_first": True}


class With(nn.Module):
    """A module called with fixed keyword arguments."""

    def __init__(self, inner: nn.Module, **kwargs: Any) -> None:
        super().__init__()
        self.inner, self.kwargs = inner, kwargs

    def forward(self, *args: Any) -> Any:
        return self.inner(*args, **self.kwargs)


def causal(n: int) -> torch.Tensor:
    return nn.Transformer.generate_square_subsequent_mask(n)


def multihead(weights: bool, mask: bool = False, **sizes: Any):
    def build(impl: str) -> Built:
        made = nn.MultiheadAttention(32, 4, batch_first=True, **sizes)
        kwargs = {"attn_mask": causal(9)} if mask else {}
        x, y = noise(2, 9, 32), noise(2, 9, sizes.get("kdim", 32))
        return With(made, need_weights=weights, **kwargs), (x, y, y), {}

    return build


def encoder(pads: bool = False, **more: Any):
    def build(impl: str) -> Built:
        layer = nn.TransformerEncoderLayer(**LAYER, **more)
        made = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        kwargs = {"src_key_padding_mask": padding(2, 9) == 0} if pads else {}
        return made, (noise(2, 9, 32),), kwargs

    return build


def decoder(impl: str) -> Built:
    made = nn.TransformerDecoder(nn.TransformerDecoderLayer(**LAYER), 2)
    return made, (noise(2, 7, 32), noise(2, 9, 32)), {"tgt_mask": causal(7), "tgt_is_causal": True}


def whole(impl: str) -> Built:
    made = nn.Transformer(32, 4, 2, 2, 48, batch_first=True)
    return made, (noise(2, 9, 32), noise(2, 7, 32)), {}


add("torch", "multihead", multihead(False), SDPA)
add("torch", "multihead-weights", multihead(True), EAGER, sample=True)
add("torch", "multihead-weights-causal", multihead(True, True), EAGER)
add("torch", "multihead-causal", multihead(False, True), SDPA)
add(
    "torch",
    "multihead-kdim-bias-zero",
    multihead(False, kdim=24, vdim=24, add_bias_kv=True, add_zero_attn=True),
    SDPA,
)
add("torch", "encoder", encoder(), SDPA, sample=True)
add("torch", "encoder-prenorm-gelu", encoder(norm_first=True, activation="gelu"), SDPA)
add("torch", "encoder-padding", encoder(True), SDPA)
add("torch", "decoder", decoder, SDPA)
add("torch", "transformer", whole, SDPA)
