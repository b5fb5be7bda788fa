"""Speech and audio: relative positions, downsampled keys, local attention, convolution."""

from __future__ import annotations

from typing import Any

import torch

from zoo import Built, add, noise, tokens
from zoo.packaged import features, model

SPEECH = {
    "input_size": 20,
    "output_size": 32,
    "attention_heads": 4,
    "num_blocks": 2,
    "use_flash_attn": False,
}


def frames() -> tuple[Any, ...]:
    """Two utterances of 40 and 32 frames."""
    return noise(2, 40, 20), torch.tensor([40, 32])


def dims(**options: int) -> Any:
    from whisper.model import ModelDimensions

    return ModelDimensions(**options)


def whisper(impl: str) -> Built:
    from whisper.model import MultiHeadAttention, Whisper

    MultiHeadAttention.use_sdpa = impl == "sdpa"
    made = Whisper(
        dims(
            n_mels=8,
            n_audio_ctx=16,
            n_audio_state=32,
            n_audio_head=4,
            n_audio_layer=1,
            n_vocab=64,
            n_text_ctx=16,
            n_text_state=32,
            n_text_head=4,
            n_text_layer=1,
        )
    )
    return made, (noise(1, 8, 32), tokens(1, 8)), {}


add("openai-whisper", "Whisper", whisper, ("eager", "sdpa"))
model(
    "espnet",
    "espnet2.asr.encoder.transformer_encoder.TransformerEncoder",
    {**SPEECH, "linear_units": 48},
    frames,
)
model(
    "espnet",
    "espnet2.asr.encoder.conformer_encoder.ConformerEncoder",
    {
        **SPEECH,
        "linear_units": 48,
        "cnn_module_kernel": 5,
        "rel_pos_type": "latest",
        "pos_enc_layer_type": "rel_pos",
        "selfattention_layer_type": "rel_selfattn",
    },
    frames,
)
model(
    "espnet",
    "espnet2.asr.encoder.branchformer_encoder.BranchformerEncoder",
    {**SPEECH, "cgmlp_linear_units": 48, "cgmlp_conv_kernel": 5},
    frames,
)
model(
    "espnet",
    "espnet2.asr.encoder.e_branchformer_encoder.EBranchformerEncoder",
    {
        **SPEECH,
        "cgmlp_linear_units": 48,
        "cgmlp_conv_kernel": 5,
        "rel_pos_type": "legacy",
        "pos_enc_layer_type": "legacy_rel_pos",
        "attention_layer_type": "legacy_rel_selfattn",
    },
    frames,
)
model(
    "espnet",
    "espnet2.asr.decoder.transformer_decoder.TransformerDecoder",
    {
        "vocab_size": 64,
        "encoder_output_size": 32,
        "attention_heads": 4,
        "linear_units": 48,
        "num_blocks": 2,
        "use_flash_attn": False,
    },
    lambda: (noise(2, 12, 32), torch.tensor([12, 9]), tokens(2, 8), torch.tensor([8, 6])),
)
model(
    "espnet",
    "espnet.nets.pytorch_backend.transformer.attention.LegacyRelPositionMultiHeadedAttention",
    {"n_head": 4, "n_feat": 32, "dropout_rate": 0.0},
    lambda: (
        noise(2, 16, 32),
        noise(2, 16, 32),
        noise(2, 16, 32),
        noise(1, 16, 32),
        torch.ones(2, 1, 16).bool(),
    ),
)
model(
    "snac",
    "snac.SNAC",
    {
        "encoder_dim": 32,
        "encoder_rates": [2, 2],
        "decoder_dim": 64,
        "decoder_rates": [2, 2],
        "attn_window_size": 4,
        "codebook_size": 16,
        "vq_strides": [2, 1],
        "noise": False,
    },
    lambda: (noise(1, 1, 128),),
)
model(
    "snac",
    "snac.attention.LocalMHA",
    {"dim": 32, "window_size": 4, "dim_head": 8},
    lambda: (noise(2, 32, 16),),
)
model("conformer", "conformer.ConformerConvModule", {"dim": 32, "kernel_size": 5}, features)
