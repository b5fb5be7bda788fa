"""Proteins, graphs and language models of small packages: the same attention, spelled anew."""

from __future__ import annotations

from typing import Any

import torch

from zoo import EAGER, Built, add, noise, tokens
from zoo.packaged import features, model, words

MHA = {"embed_dim": 32, "num_heads": 4}


def three() -> tuple[Any, ...]:
    """Queries, keys and values."""
    return noise(2, 16, 32), noise(2, 12, 32), noise(2, 12, 32)


def edges() -> torch.Tensor:
    return torch.randint(0, 10, (2, 30))


def gpt(impl: str) -> Built:
    from lmt.models import ModelConfig
    from lmt.models.gpt.gpt import GPT

    config = ModelConfig(
        vocab_size=64, embed_dim=32, context_length=16, num_layers=2, num_heads=4, dropout=0.0
    )
    return GPT(config), (tokens(2, 16),), {}


def albert(impl: str) -> Built:
    from curated_transformers.layers import AttentionMask
    from curated_transformers.models import ALBERTConfig, ALBERTEncoder

    made = ALBERTEncoder(
        ALBERTConfig(
            embedding_width=16,
            hidden_width=32,
            intermediate_width=48,
            n_attention_heads=4,
            n_hidden_layers=2,
            n_pieces=64,
            n_positions=32,
        )
    )
    return made, (tokens(2, 16), AttentionMask(torch.ones(2, 16).bool())), {}


def xl(impl: str) -> Built:
    from labml_nn.transformers.feed_forward import FeedForward
    from labml_nn.transformers.xl import TransformerXL, TransformerXLLayer
    from labml_nn.transformers.xl.relative_mha import RelativeMultiHeadAttention

    layer = TransformerXLLayer(
        d_model=32,
        self_attn=RelativeMultiHeadAttention(4, 32, 0.0),
        feed_forward=FeedForward(32, 48, 0.0),
        dropout_prob=0.0,
    )
    return TransformerXL(layer, 2), (noise(8, 2, 32), [], torch.ones(8, 8, 1).tril()), {}


add("language-modeling-transformers", "GPT", gpt, EAGER)
add("curated-transformers", "ALBERTEncoder", albert, EAGER, mixed=-1)  # one graph runs twice
add("labml-nn", "TransformerXL", xl, EAGER)
model(
    "labml-nn",
    "labml_nn.transformers.mha.MultiHeadAttention",
    {"heads": 4, "d_model": 32, "dropout_prob": 0.0},
    lambda: ({"query": noise(8, 2, 32), "key": noise(10, 2, 32), "value": noise(10, 2, 32)},),
)
model(
    "torch-geometric",
    "torch_geometric.nn.aggr.utils.SetAttentionBlock",
    {"channels": 32, "heads": 4},
    features,
)
model(
    "torch-geometric",
    "torch_geometric.nn.aggr.utils.PoolingByMultiheadAttention",
    {"channels": 32, "num_seed_points": 3, "heads": 4},
    features,
)
model(
    "torch-geometric",
    "torch_geometric.nn.attention.PerformerAttention",
    {"channels": 32, "heads": 4, "head_channels": 8},
    features,
)
model(
    "torch-geometric",
    "torch_geometric.nn.GATv2Conv",
    {"in_channels": 16, "out_channels": 8, "heads": 2},
    lambda: (noise(10, 16), edges()),
)
model("torch-geometric", "torch_geometric.nn.AGNNConv", {}, lambda: (noise(10, 16), edges()))
model(
    "torch-geometric",
    "torch_geometric.nn.GCNConv",
    {"in_channels": 16, "out_channels": 8},
    lambda: (noise(10, 16), edges()),
)
model(
    "transformer-encoder",
    "transformer_encoder.multi_head_attention.MultiHeadAttention",
    {"n_heads": 4, "d_model": 32},
    three,
)
model(
    "grouped_query_attention_pytorch",
    "grouped_query_attention_pytorch.attention.MultiheadGQA",
    {"embed_dim": 64, "query_heads": 8, "kv_heads": 4},
    lambda: (noise(2, 16, 64), noise(2, 16, 64), noise(2, 16, 64)),
)
model(
    "grouped_query_attention_pytorch",
    "grouped_query_attention_pytorch.transformer.GQATransformer",
    {
        "d_model": 64,
        "nhead": 8,
        "kv_heads": 4,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "dim_feedforward": 48,
    },
    lambda: (noise(2, 16, 64),),
)
model(
    "differential-transformer",
    "differential_transformer.main.DifferentialTransformer",
    {"dim": 32, "heads": 2, "depth": 1, "num_tokens": 64},
    words,
    why={"NOT_ATTENTION:router": "token probabilities"},
)
model(
    "attnhut", "attnhut.StandardAttention", {"dim": 32, "num_heads": 4, "causal": True}, features
)
model("attnhut", "attnhut.DifferentialAttention", {"dim": 32, "num_heads": 2}, features)
model(
    "attnhut",
    "attnhut.CompressedSparseAttention",
    {"dim": 32, "num_heads": 4, "top_k": 2, "index_dim": 8, "window": 4},
    features,
    why={"UNKNOWN_SCORE_OP:cat": "weights with which blocks of keys are compressed"},
)
model(
    "attnhut",
    "attnhut.MiniMaxSparseAttention",
    {"dim": 32, "num_heads": 4, "num_kv_groups": 2, "block_size": 4, "top_k": 2},
    features,
)
model(
    "attnhut",
    "attnhut.CausalJEPAAttention",
    {"dim": 32, "num_heads": 4, "num_slots": 4, "history_frames": 2, "depth": 1},
    lambda: (noise(2, 2, 4, 32),),
)
model(
    "coda-gqa-l",
    "coda_gqa_l.baseline.BaselineGQA",
    {"embed_dim": 32, "num_heads": 4, "num_kv_heads": 2},
    features,
)
model(
    "yet-another-retnet",
    "yet_another_retnet.retention.MultiScaleRetention",
    {"embed_dim": 32, "num_heads": 2},
    lambda: (noise(2, 16, 32),) * 3,
)
model(
    "tr-rosetta-pytorch",
    "tr_rosetta_pytorch.trRosettaNetwork",
    {"filters": 8, "num_layers": 2},
    lambda: (noise(1, 526, 12, 12),),
    why={"UNKNOWN_SCORE_OP:elu": "class probabilities of convolutions"},
)
