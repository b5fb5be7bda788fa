"""x-transformers: one decoder with many ways to spell attention."""

from __future__ import annotations

from typing import Any

from zoo import EAGER, Built, add, noise, tokens


def encoder(**options: Any):
    def build(impl: str) -> Built:
        from x_transformers import Encoder

        made = Encoder(
            dim=32, depth=2, heads=4, attn_dim_head=8, attn_flash=impl == "sdpa", **options
        )
        return made, (noise(2, 9, 32),), {}

    return build


def decoder(**options: Any):
    def build(impl: str) -> Built:
        from x_transformers import Decoder, TransformerWrapper

        made = TransformerWrapper(
            num_tokens=64,
            max_seq_len=16,
            attn_layers=Decoder(
                dim=32, depth=2, heads=4, attn_dim_head=8, attn_flash=impl == "sdpa", **options
            ),
        )
        return made, (tokens(2, 9),), {}

    return build


BOTH = ("eager", "sdpa")
add("x_transformers", "encoder", encoder(), BOTH)
add("x_transformers", "decoder", decoder(), BOTH, sample=True)
add("x_transformers", "decoder-rotary", decoder(rotary_pos_emb=True), BOTH)
add("x_transformers", "decoder-alibi", decoder(alibi_pos_bias=True), EAGER)
add("x_transformers", "encoder-t5-bias", encoder(rel_pos_bias=True), EAGER)
add("x_transformers", "encoder-one-kv-head", encoder(attn_one_kv_head=True), BOTH)
add("x_transformers", "encoder-grouped", encoder(attn_kv_heads=2), BOTH)
add("x_transformers", "encoder-qk-norm", encoder(attn_qk_norm=True), EAGER)
add(
    "x_transformers",
    "encoder-talking-heads",
    encoder(attn_pre_talking_heads=True, attn_post_talking_heads=True),
    EAGER,
    mixed=2,
    sample=True,
)
add("x_transformers", "decoder-cross", lambda impl: _cross(), EAGER)
add("x_transformers", "encoder-memory", encoder(attn_num_mem_kv=3), EAGER)
add("x_transformers", "encoder-soft-clamp", encoder(attn_softclamp_logits=True), EAGER)


def _cross() -> Built:
    from x_transformers import Decoder

    made = Decoder(dim=32, depth=1, heads=4, attn_dim_head=8, cross_attend=True)
    return made, (noise(2, 7, 32),), {"context": noise(2, 9, 32)}
