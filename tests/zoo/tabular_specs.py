"""Tables and time series: features as tokens, patches, variates."""

from __future__ import annotations

from typing import Any

import torch

from zoo import EAGER, Built, add, noise
from zoo.packaged import features, model

FT = {"categories": (4, 6), "num_continuous": 3, "dim": 32, "depth": 2, "heads": 4, "dim_head": 8}

STREAMS = {"UNKNOWN_SCORE_OP:add": "residual streams are mixed by a doubly stochastic matrix"}


def table() -> tuple[Any, ...]:
    """Five rows of two categories and three numbers."""
    return torch.randint(0, 4, (5, 2)), noise(5, 3)


def bolt(impl: str) -> Built:
    from chronos.chronos_bolt import ChronosBoltModelForForecasting
    from transformers import T5Config

    config = T5Config(
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=4,
        vocab_size=2,
        decoder_start_token_id=0,
        pad_token_id=0,
    )
    config.chronos_config = {
        "context_length": 16,
        "prediction_length": 4,
        "input_patch_size": 4,
        "input_patch_stride": 4,
        "quantiles": [0.1, 0.5, 0.9],
        "use_reg_token": True,
    }
    return ChronosBoltModelForForecasting(config), (noise(2, 16),), {}


def chronos2(name: str) -> None:
    def build(impl: str) -> Built:
        import chronos.chronos2.layers as layers
        from chronos.chronos2.config import Chronos2CoreConfig

        config = Chronos2CoreConfig(d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
        config._attn_implementation = impl
        made = getattr(layers, name)(config)
        if name == "TimeSelfAttention":
            return made, (noise(2, 8, 32), torch.zeros(2, 1, 8, 8), torch.arange(8)[None]), {}
        return made, (noise(2, 8, 32), torch.zeros(8, 1, 2, 2)), {}

    add("chronos-forecasting", name, build, ("eager", "sdpa"))


def timesfm(impl: str) -> Built:
    from timesfm.configs import TransformerConfig
    from timesfm.torch.transformer import Transformer

    config = TransformerConfig(
        model_dims=32,
        hidden_dims=48,
        num_heads=4,
        attention_norm="rms",
        feedforward_norm="rms",
        qk_norm="rms",
        use_bias=False,
        use_rotary_position_embeddings=True,
        ff_activation="swish",
        fuse_qkv=True,
    )
    return Transformer(config), (noise(2, 16, 32), torch.zeros(2, 16).bool()), {}


add("chronos-forecasting", "ChronosBoltModelForForecasting", bolt, EAGER)
chronos2("TimeSelfAttention")
chronos2("GroupSelfAttention")
add("timesfm", "Transformer", timesfm, EAGER)
model("tab-transformer-pytorch", "tab_transformer_pytorch.FTTransformer", FT, table, why=STREAMS)
model(
    "tab-transformer-pytorch",
    "tab_transformer_pytorch.TabTransformer",
    {**FT, "mlp_act": torch.nn.ReLU()},
    table,
    why=STREAMS,
)
model(
    "tab-transformer-pytorch",
    "tab_transformer_pytorch.ft_transformer.Attention",
    {"dim": 32, "heads": 4, "dim_head": 8},
    features,
)
model(
    "rtdl_revisiting_models",
    "rtdl_revisiting_models.FTTransformerBackbone",
    {
        "d_out": 2,
        "n_blocks": 2,
        "d_block": 32,
        "attention_n_heads": 4,
        "attention_dropout": 0.0,
        "ffn_d_hidden": 48,
        "ffn_d_hidden_multiplier": None,
        "ffn_dropout": 0.0,
        "residual_dropout": 0.0,
    },
    features,
)
model(
    "rtdl_revisiting_models",
    "rtdl_revisiting_models.MultiheadAttention",
    {
        "d_embedding": 32,
        "n_heads": 4,
        "dropout": 0.0,
        "n_tokens": 16,
        "linformer_kv_compression_ratio": 0.5,
        "linformer_kv_compression_sharing": "headwise",
    },
    lambda: (noise(2, 16, 32),) * 2,
)
model(
    "rtdl",
    "rtdl.modules.MultiheadAttention",
    {"d_token": 32, "n_heads": 4, "dropout": 0.0, "bias": True, "initialization": "kaiming"},
    lambda: (noise(2, 16, 32), noise(2, 16, 32), None, None),
)
model(
    "rtdl_num_embeddings",
    "rtdl_num_embeddings.PeriodicEmbeddings",
    {"n_features": 3, "d_embedding": 8, "lite": False},
    lambda: (noise(5, 3),),
)
model(
    "tabm",
    "tabm.MLPBackboneBatchEnsemble",
    {
        "d_in": 8,
        "n_blocks": 2,
        "d_block": 16,
        "dropout": 0.0,
        "k": 4,
        "tabm_init": True,
        "scaling_init": "random-signs",
        "start_scaling_init_chunks": None,
    },
    lambda: (noise(5, 4, 8),),
)
