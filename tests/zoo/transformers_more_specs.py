"""transformers, more of it: architectures neither in the corpus nor in the set kept aside."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch

from zoo import BOTH, EAGER, Built, add, noise, padding, tokens
from zoo.transformers_specs import (
    AUDIO,
    DECODER,
    ROUTER,
    SEQ2SEQ,
    SIZES,
    T5,
    VISION,
    WINDOWS,
    bare,
    image,
    image64,
    pair,
    sound,
    text,
)

MOE = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "n_group": 1,
    "topk_group": 1,
}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 4,
}
INDEX = {"index_topk": 4, "index_head_dim": 8, "index_n_heads": 2}
BIG = {**DECODER, "head_dim": 8, "sliding_window": 4, "embedding_dim": 32, **MOE}
"""What decoders are made of; a configuration takes the fields that it has."""
MAMBA = {
    "mamba_d_state": 4,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_d_head": 16,
    "mamba_n_heads": 4,
    "mamba_chunk_size": 4,
    "use_mamba_kernels": False,
}


def taken(config: type, sizes: dict[str, Any]) -> dict[str, Any]:
    """Those sizes that a configuration has a field for."""
    known = set(inspect.signature(config.__init__).parameters) | set(
        getattr(config, "attribute_map", {})
    )
    if dataclasses.is_dataclass(config):
        known |= {f.name for f in dataclasses.fields(config)}
    return {k: v() if callable(v) else v for k, v in sizes.items() if k in known}


def model(
    name: str, config: str, cls: str, sizes: dict[str, Any], inputs: Any, **more: Any
) -> None:
    """``more["extra"]``: sizes that are given whether the configuration names them or not."""
    extra = more.pop("extra", {})
    module = more.pop("module", "")

    def build(impl: str) -> Built:
        import importlib

        import transformers

        library = importlib.import_module(f"transformers.models.{module}") if module else None
        kind = getattr(transformers, config, None) or getattr(library, config)
        given = {k: v() if callable(v) else v for k, v in extra.items()}
        made = kind(**{**taken(kind, sizes), **given})
        network = getattr(transformers, cls, None) or getattr(library, cls)
        return network._from_config(made, attn_implementation=impl), (), inputs()

    more.setdefault("impls", BOTH)
    add("transformers", name, build, **more)


STREAMS = {"NOT_ATTENTION:router": "hyper-connections: stream weights are softmax of a projection"}
POINTS_WEIGHTS = {
    "NOT_ATTENTION:router": "deformable attention: point weights are softmax of a projection"
}
CELLS = {"NOT_ATTENTION:router": "keypoints: softmax over the pixels of a cell"}

# encoders of text
model("roberta-prelayernorm", "RobertaPreLayerNormConfig", "RobertaPreLayerNormModel", SIZES, text)
model("xlm-roberta", "XLMRobertaConfig", "XLMRobertaModel", SIZES, text)
model("xlm-roberta-xl", "XLMRobertaXLConfig", "XLMRobertaXLModel", SIZES, text)
model("xmod", "XmodConfig", "XmodModel", SIZES, text, extra={"default_language": "en_XX"})
model(
    "roc-bert",
    "RoCBertConfig",
    "RoCBertModel",
    SIZES,
    lambda: {**text(), "input_shape_ids": tokens(2, 12), "input_pronunciation_ids": tokens(2, 12)},
    extra={
        "pronunciation_vocab_size": 64,
        "shape_vocab_size": 64,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
)
model("dpr", "DPRConfig", "DPRContextEncoder", SIZES, text)
model("ibert", "IBertConfig", "IBertModel", SIZES, text, impls=EAGER)
model(
    "bros",
    "BrosConfig",
    "BrosModel",
    {**SIZES, "hidden_size": 64},
    lambda: {**text(), "bbox": noise(2, 12, 4).sigmoid()},
    impls=EAGER,
)
model(
    "markuplm",
    "MarkupLMConfig",
    "MarkupLMModel",
    SIZES,
    lambda: {
        **text(),
        "xpath_tags_seq": tokens(2, 12, 4, upto=20),
        "xpath_subs_seq": tokens(2, 12, 4, upto=20),
    },
    impls=EAGER,
    extra={
        "max_depth": 4,
        "max_xpath_tag_unit_embeddings": 24,
        "max_xpath_subs_unit_embeddings": 24,
        "tag_pad_id": 20,
        "subs_pad_id": 20,
        "xpath_unit_hidden_size": 8,
    },
)
model("tapas", "TapasConfig", "TapasModel", SIZES, text, impls=EAGER)
model(
    "lxmert",
    "LxmertConfig",
    "LxmertModel",
    SIZES,
    lambda: {
        **text(),
        "visual_feats": noise(2, 5, 16),
        "visual_pos": noise(2, 5, 4),
    },
    impls=EAGER,
    extra={"l_layers": 1, "x_layers": 1, "r_layers": 1, "visual_feat_dim": 16},
)
model(
    "flaubert",
    "FlaubertConfig",
    "FlaubertModel",
    SIZES,
    text,
    impls=EAGER,
    extra={"emb_dim": 32, "n_layers": 2, "n_heads": 4},
)
model(
    "mobilebert",
    "MobileBertConfig",
    "MobileBertModel",
    SIZES,
    text,
    extra={"embedding_size": 16, "intra_bottleneck_size": 16},
)
model(
    "nystromformer",
    "NystromformerConfig",
    "NystromformerModel",
    SIZES,
    bare,
    impls=EAGER,
    extra={"num_landmarks": 12, "segment_means_seq_len": 12, "conv_kernel_size": 3},
)
model(
    "big-bird",
    "BigBirdConfig",
    "BigBirdModel",
    {**SIZES, "max_position_embeddings": 128},
    lambda: {"input_ids": tokens(2, 64)},
    impls=EAGER,
    mixed=-5,  # one graph serves both layers
    extra={"attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 1},
)
model(
    "reformer",
    "ReformerConfig",
    "ReformerModel",
    SIZES,
    lambda: {"input_ids": tokens(2, 16)},
    impls=EAGER,
    mixed=2,
    extra={
        "attention_head_size": 8,
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": (4, 4),
        "axial_pos_embds_dim": (8, 24),
        "feed_forward_size": 32,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "num_buckets": 4,
        "hash_seed": 0,
    },
)
model("ultrabert", "UltrabertConfig", "UltrabertModel", BIG, text)
model("neomme", "NeoMMEConfig", "NeoMMEModel", {**BIG, "embedding_rank": 16, "head_dim": 16}, text)

# decoders
model("afmoe", "AfmoeConfig", "AfmoeModel", BIG, text)
model("apertus", "ApertusConfig", "ApertusModel", BIG, text)
model("axk1", "AXK1Config", "AXK1Model", {**BIG, **LATENT}, text)
model("axk2", "AXK2Config", "AXK2Model", {**BIG, **LATENT, **INDEX}, text)
model("cohere2-moe", "Cohere2MoeConfig", "Cohere2MoeModel", BIG, text, why=ROUTER)
model("cwm", "CwmConfig", "CwmModel", BIG, text)
model(
    "dbrx",
    "DbrxConfig",
    "DbrxModel",
    {},
    text,
    extra={
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 64,
        "vocab_size": 64,
        "use_cache": False,
        "attn_config": lambda: {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        "ffn_config": lambda: {
            "hidden_size": 32,
            "ffn_hidden_size": 16,
            "moe_num_experts": 4,
            "moe_top_k": 2,
            "ffn_act_fn": {"name": "silu"},
        },
    },
    why=ROUTER,
)
model("deepseek-v2", "DeepseekV2Config", "DeepseekV2Model", {**BIG, **LATENT}, text, why=ROUTER)
model("deepseek-v32", "DeepseekV32Config", "DeepseekV32Model", {**BIG, **LATENT, **INDEX}, text)
model(
    "deepseek-v4",
    "DeepseekV4Config",
    "DeepseekV4Model",
    {**BIG, "q_lora_rank": 16, "o_groups": 2, "o_lora_rank": 8, **INDEX},
    text,
    extra={"num_key_value_heads": 1},
    impls=EAGER,
    why=STREAMS,
)
model("exaone4", "Exaone4Config", "Exaone4Model", BIG, text)
model("flex-olmo", "FlexOlmoConfig", "FlexOlmoModel", BIG, text, why=ROUTER)
model("gemma", "GemmaConfig", "GemmaModel", BIG, text)
model("glm4", "Glm4Config", "Glm4Model", BIG, text)
model("glm4-moe-lite", "Glm4MoeLiteConfig", "Glm4MoeLiteModel", {**BIG, **LATENT}, text)
model("granite-swa", "GraniteSWAConfig", "GraniteSWAModel", BIG, text, impls=EAGER)
model(
    "granitemoehybrid",
    "GraniteMoeHybridConfig",
    "GraniteMoeHybridModel",
    {**BIG, **MAMBA, "layer_types": lambda: ["mamba", "attention"]},
    text,
    why=ROUTER,
)
model("hrm-text", "HrmTextConfig", "HrmTextModel", {**BIG, "H_cycles": 1, "L_cycles": 1}, text)
model("hy-v3", "HYV3Config", "HYV3Model", BIG, text)
model("hy-v4", "HYV4Config", "HYV4Model", {**BIG, **LATENT, **INDEX}, text, impls=EAGER)
model("hyperclovax", "HyperCLOVAXConfig", "HyperCLOVAXModel", BIG, text)
model("jetmoe", "JetMoeConfig", "JetMoeModel", {**BIG, "kv_channels": 8}, text, why=ROUTER)
model(
    "lfm2-moe",
    "Lfm2MoeConfig",
    "Lfm2MoeModel",
    {**BIG, "layer_types": lambda: ["conv", "full_attention"]},
    text,
)
model(
    "lfm3",
    "Lfm3Config",
    "Lfm3Model",
    {
        **BIG,
        "layer_types": ["conv", "sliding_attention", "full_attention"],
        "num_hidden_layers": 3,
    },
    text,
)
model(
    "longcat-flash",
    "LongcatFlashConfig",
    "LongcatFlashModel",
    {
        **BIG,
        **LATENT,
        "num_layers": 2,
        "ffn_hidden_size": 48,
        "moe_topk": 2,
        "zero_expert_num": 1,
        "expert_ffn_hidden_size": 16,
        "qk_head_dim": 12,
    },
    text,
    why=ROUTER,
)
model(
    "mimo-v2-flash",
    "MiMoV2FlashConfig",
    "MiMoV2FlashModel",
    {**BIG, "v_head_dim": 4},
    text,
    impls=EAGER,
)
model("minicpm3", "MiniCPM3Config", "MiniCPM3Model", {**BIG, **LATENT}, text)
model("ministral3", "Ministral3Config", "Ministral3Model", BIG, text)
model(
    "mistral-large4-text",
    "MistralLarge4TextConfig",
    "MistralLarge4TextModel",
    {**BIG, **LATENT, **INDEX},
    text,
    why=ROUTER,
)
model("olmo", "OlmoConfig", "OlmoModel", BIG, text)
model(
    "phimoe",
    "PhimoeConfig",
    "PhimoeModel",
    BIG,
    text,
    why={
        **ROUTER,
        "UNKNOWN_SCORE_OP:scatter": "the second expert: the gate over experts without the first",
    },
)
model("qwen2", "Qwen2Config", "Qwen2Model", BIG, text)
model("qwen3-moe", "Qwen3MoeConfig", "Qwen3MoeModel", BIG, text, why=ROUTER)
model(
    "recurrent-gemma",
    "RecurrentGemmaConfig",
    "RecurrentGemmaModel",
    {**BIG, "lru_width": 32, "attention_window_size": 4, "num_hidden_layers": 3},
    text,
)
model("smollm3", "SmolLM3Config", "SmolLM3Model", BIG, text)
model("youtu", "YoutuConfig", "YoutuModel", {**BIG, **LATENT}, text)
model(
    "zamba",
    "ZambaConfig",
    "ZambaModel",
    {
        **SIZES,
        **MAMBA,
        "use_cache": False,
        "num_hidden_layers": 6,
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "num_key_value_heads": 4,
    },
    lambda: {"input_ids": tokens(2, 4)},
    extra={"n_mamba_heads": 2},
)
model(
    "ctrl",
    "CTRLConfig",
    "CTRLModel",
    {
        "vocab_size": 64,
        "n_positions": 64,
        "n_embd": 32,
        "dff": 48,
        "n_layer": 2,
        "n_head": 4,
        "use_cache": False,
    },
    text,
    impls=EAGER,
)
model("gpt-neox-japanese", "GPTNeoXJapaneseConfig", "GPTNeoXJapaneseModel", BIG, text, impls=EAGER)
model(
    "cohere-compass-text",
    "CohereCompassTextConfig",
    "CohereCompassTextModel",
    {
        **BIG,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": lambda: {
            k: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
            for k in ("sliding_attention", "full_attention")
        },
    },
    text,
)
model(
    "cosmos3-edge-text",
    "Cosmos3EdgeTextConfig",
    "Cosmos3EdgeTextModel",
    {
        **BIG,
        "rope_parameters": lambda: {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [2, 1, 1],
        },
    },
    text,
)
model(
    "deepseek-ocr2-text",
    "DeepseekOcr2TextConfig",
    "DeepseekOcr2TextModel",
    {**BIG, "mlp_layer_types": ["dense", "sparse"]},
    text,
    why=ROUTER,
)
model("gemma4-unified-text", "Gemma4UnifiedTextConfig", "Gemma4UnifiedTextModel", BIG, text)
model("molmo2-text", "Molmo2TextConfig", "Molmo2TextModel", BIG, text)
model(
    "timesfm2-5",
    "TimesFm2_5Config",
    "TimesFm2_5Model",
    {
        **BIG,
        "num_key_value_heads": 4,
        "patch_length": 4,
        "horizon_length": 8,
        "context_length": 32,
    },
    lambda: {"past_values": noise(2, 32)},
)

# encoder-decoders
model("blenderbot", "BlenderbotConfig", "BlenderbotModel", SEQ2SEQ, pair)
model("blenderbot-small", "BlenderbotSmallConfig", "BlenderbotSmallModel", SEQ2SEQ, pair)
model("pegasus", "PegasusConfig", "PegasusModel", SEQ2SEQ, pair)
model(
    "bigbird-pegasus",
    "BigBirdPegasusConfig",
    "BigBirdPegasusModel",
    {**SEQ2SEQ, "attention_type": "original_full"},
    pair,
    impls=EAGER,
)
model(
    "nllb-moe",
    "NllbMoeConfig",
    "NllbMoeModel",
    {
        **SEQ2SEQ,
        "num_experts": 4,
        "expert_capacity": 4,
        "encoder_sparse_step": 2,
        "decoder_sparse_step": 2,
    },
    pair,
    why=ROUTER,
    impls=EAGER,
)
model("mt5", "MT5Config", "MT5Model", T5, pair)
model("umt5", "UMT5Config", "UMT5Model", T5, pair, impls=EAGER)
model(
    "pop2piano",
    "Pop2PianoConfig",
    "Pop2PianoForConditionalGeneration",
    T5,
    lambda: {"inputs_embeds": noise(2, 12, 32), "decoder_input_ids": tokens(2, 7)},
    impls=EAGER,
)
model(
    "time-series-transformer",
    "TimeSeriesTransformerConfig",
    "TimeSeriesTransformerModel",
    {
        **SEQ2SEQ,
        "d_model": 16,
        "prediction_length": 4,
        "context_length": 8,
        "lags_sequence": [1, 2],
        "num_time_features": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    },
    lambda: series(),
    impls=EAGER,
)
model(
    "autoformer",
    "AutoformerConfig",
    "AutoformerModel",
    {
        **SEQ2SEQ,
        "d_model": 16,
        "prediction_length": 4,
        "context_length": 8,
        "lags_sequence": [1, 2],
        "num_time_features": 1,
        "label_length": 4,
        "moving_average": 3,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    },
    lambda: series(),
    impls=EAGER,
    why={"NOT_ATTENTION:pooling": "auto-correlation: softmax over the strongest delays"},
)


def series() -> dict[str, Any]:
    return {
        "past_values": noise(2, 10),
        "past_time_features": noise(2, 10, 1),
        "past_observed_mask": torch.ones(2, 10),
        "future_values": noise(2, 4),
        "future_time_features": noise(2, 4, 1),
    }


NARROW = {"embed_dim": 32, "layers": 2, "attention_heads": 4, "ffn_dim": 48}
CNN = {
    "embedding_size": 8,
    "hidden_sizes": (8, 8, 16, 16),
    "depths": (1, 1, 1, 1),
    "layer_type": "basic",
}
TOWERS = {
    "text_config": lambda: dict(SIZES),
    "vision_config": lambda: {**VISION, "projection_dim": 16},
    "projection_dim": 16,
}
STAGES = {
    "num_encoder_blocks": 2,
    "depths": (1, 1),
    "sr_ratios": (4, 2),
    "hidden_sizes": (16, 32),
    "num_attention_heads": (1, 2),
    "patch_sizes": (7, 3),
    "strides": (4, 2),
    "mlp_ratios": (2, 2),
    "image_size": 64,
}
DETECTOR = {
    **{k: v for k, v in SEQ2SEQ.items() if "layers" in k or "heads" in k or "ffn" in k},
    "d_model": 32,
    "num_queries": 6,
    "backbone_config": lambda: config("ResNetConfig", **CNN, out_features=["stage4"]),
}


def config(name: str, **sizes: Any) -> Any:
    import transformers

    return getattr(transformers, name)(**sizes)


def masked64() -> dict[str, Any]:
    return {**image64(), "pixel_mask": torch.ones(2, 64, 64, dtype=torch.long)}


def both() -> dict[str, Any]:
    return {**text(), **image()}


# images
VIT = {**VISION, "mlp_ratio": 2}
model(
    "audio-spectrogram-transformer",
    "ASTConfig",
    "ASTModel",
    {**VISION, "max_length": 32, "num_mel_bins": 16, "frequency_stride": 8, "time_stride": 8},
    lambda: {"input_values": noise(2, 32, 16)},
)
model("aimv2-vision-model", "Aimv2VisionConfig", "Aimv2VisionModel", VISION, image)
model("dinov2-with-registers", "Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", VIT, image)
model("ijepa", "IJepaConfig", "IJepaModel", VISION, image)
model("vit-msn", "ViTMSNConfig", "ViTMSNModel", VISION, image)
model("pixio", "PixioConfig", "PixioModel", VIT, image)
model("radio", "RadioConfig", "RadioModel", {**VIT, "mlp_ratio": 2.0, "max_img_size": 64}, image)
model(
    "sapiens2",
    "Sapiens2Config",
    "Sapiens2Model",
    {
        **VISION,
        "num_hidden_layers": 4,
        "num_key_value_attention_heads": 2,
        "num_first_full_attention_layers": 1,
        "num_last_full_attention_layers": 1,
        "num_register_tokens": 2,
    },
    image,
)
model(
    "yolos",
    "YolosConfig",
    "YolosModel",
    {**VISION, "num_detection_tokens": 5},
    image,
    extra={"image_size": [32, 32]},
)
model(
    "vivit",
    "VivitConfig",
    "VivitModel",
    {**VISION, "num_frames": 4, "tubelet_size": (2, 8, 8)},
    lambda: {"pixel_values": noise(2, 4, 3, 32, 32)},
)
model(
    "vilt",
    "ViltConfig",
    "ViltModel",
    {**SIZES, **VISION, "max_image_length": 8},
    lambda: {**both(), "pixel_mask": torch.ones(2, 32, 32, dtype=torch.long)},
    impls=EAGER,
)
model(
    "mgp-str",
    "MgpstrConfig",
    "MgpstrForSceneTextRecognition",
    {**VIT, "max_token_length": 5},
    lambda: {"pixel_values": noise(2, 3, 16, 32)},
    impls=EAGER,
    extra={
        "image_size": (16, 32),
        "patch_size": 8,
        "num_character_labels": 10,
        "num_bpe_labels": 20,
        "num_wordpiece_labels": 20,
    },
    why={"NOT_ATTENTION:pooling": "token learner: softmax of convolved features"},
)
model("donut-swin", "DonutSwinConfig", "DonutSwinModel", WINDOWS, image, impls=EAGER)
model(
    "maskformer-swin", "MaskFormerSwinConfig", "MaskFormerSwinModel", WINDOWS, image, impls=EAGER
)
model("glpn", "GLPNConfig", "GLPNModel", STAGES, image64, impls=EAGER)
model("pvt-v2", "PvtV2Config", "PvtV2Model", STAGES, image64, impls=EAGER)
model(
    "swiftformer",
    "SwiftFormerConfig",
    "SwiftFormerModel",
    {"depths": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 32), "mlp_ratio": 2},
    image64,
    impls=EAGER,
    why={"NOT_ATTENTION:gate": "additive attention: one global query, no map of queries and keys"},
)
model(
    "upernet",
    "UperNetConfig",
    "UperNetForSemanticSegmentation",
    {
        "backbone_config": lambda: config(
            "SwinConfig",
            **{**WINDOWS, "depths": [1, 1, 1, 1], "num_heads": [2, 2, 4, 4], "image_size": 64},
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        "hidden_size": 16,
        "pool_scales": [1, 2],
        "use_auxiliary_head": False,
    },
    image64,
    impls=EAGER,
)
DINO = {
    **VISION,
    "mlp_ratio": 2,
    "num_register_tokens": 0,
    "out_features": ["stage1", "stage2"],
    "reshape_hidden_states": False,
}
DEPTH = {
    "patch_size": 8,
    "reassemble_hidden_size": 32,
    "reassemble_factors": [2, 1],
    "neck_hidden_sizes": [16, 16],
    "fusion_hidden_size": 16,
    "head_hidden_size": 8,
}
model(
    "depth-anything",
    "DepthAnythingConfig",
    "DepthAnythingForDepthEstimation",
    {**DEPTH, "backbone_config": lambda: config("Dinov2WithRegistersConfig", **DINO)},
    image,
    impls=EAGER,
)
model(
    "prompt-depth-anything",
    "PromptDepthAnythingConfig",
    "PromptDepthAnythingForDepthEstimation",
    {**DEPTH, "backbone_config": lambda: config("Dinov2WithRegistersConfig", **DINO)},
    lambda: {**image(), "prompt_depth": noise(2, 1, 16, 16)},
    impls=EAGER,
)
PACKED = {
    "depth": 2,
    "num_heads": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "patch_size": 4,
    "image_size": 32,
    "out_hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_key_value_heads": 4,
    "projection_intermediate_dim": 48,
    "num_position_embeddings": 64,
}


def packed(features: int) -> Any:
    """Two images of 16 and 24 patches, packed into one row."""
    return lambda: {
        "hidden_states": noise(40, features),
        "grid_thw": torch.tensor([[1, 4, 4], [1, 4, 6]]),
    }


model(
    "glm4v-moe-vision",
    "Glm4vMoeVisionConfig",
    "Glm4vMoeVisionModel",
    PACKED,
    packed(96),
    module="glm4v_moe.modeling_glm4v_moe",
    mixed=-2,  # one graph serves both layers
)
model(
    "qwen3-vl-moe-text",
    "Qwen3VLMoeTextConfig",
    "Qwen3VLMoeTextModel",
    BIG,
    text,
    module="qwen3_vl_moe.modeling_qwen3_vl_moe",
    why=ROUTER,
)
model(
    "paddleocr-vl-vision",
    "PaddleOCRVisionConfig",
    "PaddleOCRVisionModel",
    {**PACKED, "num_channels": 3},
    lambda: {
        "pixel_values": noise(1, 40, 3, 4, 4),
        "grid_thw": torch.tensor([[1, 4, 4], [1, 4, 6]]),
    },
    module="paddleocr_vl.modeling_paddleocr_vl",
    mixed=-2,  # one graph serves both layers
)
model(
    "video-llama-3-vision",
    "VideoLlama3VisionConfig",
    "VideoLlama3VisionModel",
    PACKED,
    lambda: {
        "pixel_values": noise(40, 48),
        "grid_thw": torch.tensor([[1, 4, 4], [1, 4, 6]]),
        "merge_sizes": torch.tensor([2, 2]),
    },
    module="video_llama_3.modeling_video_llama_3",
    mixed=-2,  # one graph serves both layers
)
model(
    "mllama-vision-model",
    "MllamaVisionConfig",
    "MllamaVisionModel",
    {
        **VISION,
        "attention_heads": 4,
        "num_global_layers": 1,
        "max_num_tiles": 2,
        "intermediate_layers_indices": [0],
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    },
    lambda: {
        "pixel_values": noise(2, 1, 2, 3, 32, 32),
        "aspect_ratio_ids": torch.tensor([[1], [2]]),
        "aspect_ratio_mask": torch.tensor([[[1, 0]], [[1, 1]]]),
    },
    module="mllama.modeling_mllama",
)
# text and images
model("aimv2", "Aimv2Config", "Aimv2Model", TOWERS, both)
model(
    "altclip",
    "AltCLIPConfig",
    "AltCLIPModel",
    {**TOWERS, "text_config": lambda: {**SIZES, "project_dim": 16}},
    both,
)
model("chinese-clip", "ChineseCLIPConfig", "ChineseCLIPModel", TOWERS, both)
model("metaclip-2", "MetaClip2Config", "MetaClip2Model", TOWERS, both)
model("tipsv2", "Tipsv2Config", "Tipsv2Model", TOWERS, both)
model(
    "siglip2",
    "Siglip2Config",
    "Siglip2Model",
    {**TOWERS, "vision_config": lambda: {**VISION, "num_patches": 16}},
    lambda: {
        **bare(),
        "pixel_values": noise(2, 16, 192),
        "pixel_attention_mask": torch.ones(2, 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4], [4, 4]]),
    },
)
model(
    "xclip",
    "XCLIPConfig",
    "XCLIPModel",
    {
        "text_config": lambda: dict(SIZES),
        "vision_config": lambda: {
            **VISION,
            "mit_hidden_size": 32,
            "mit_intermediate_size": 32,
            "mit_num_attention_heads": 4,
            "num_frames": 2,
        },
        "projection_dim": 32,
        "prompt_num_attention_heads": 4,
    },
    lambda: {**text(), "pixel_values": noise(2, 2, 3, 32, 32)},
)
model(
    "groupvit",
    "GroupViTConfig",
    "GroupViTModel",
    {
        "text_config": lambda: dict(SIZES),
        "vision_config": lambda: {
            **VISION,
            "depths": [1, 1],
            "num_group_tokens": [4, 0],
            "num_output_groups": [4, 0],
        },
        "projection_dim": 16,
        "projection_intermediate_dim": 32,
    },
    both,
    impls=EAGER,
    why={"NOT_ATTENTION:gate": "hard assignment: softmax over the groups, then one-hot"},
)
model(
    "bridgetower",
    "BridgeTowerConfig",
    "BridgeTowerModel",
    {
        **SIZES,
        "hidden_size": 64,
        "text_config": lambda: {**SIZES, "hidden_size": 64},
        "vision_config": lambda: {**VISION, "hidden_size": 64},
    },
    lambda: {**both(), "pixel_mask": torch.ones(2, 32, 32, dtype=torch.long)},
    impls=EAGER,
)


def vlm(name: str, config: str, cls: str, places: int, **sizes: Any) -> None:
    """An image of 32 x 32 pixels put at ``places`` tokens (number 3) of a text."""
    inputs = sizes.pop("inputs", image)
    impls, why = sizes.pop("impls", BOTH), sizes.pop("why", {})

    def words() -> dict[str, Any]:
        ids = torch.randint(4, 60, (2, places + 6))
        ids[:, 2 : places + 2] = 3
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **inputs()}

    model(
        name,
        config,
        cls,
        {},
        words,
        impls=impls,
        why=why,
        extra={"text_config": lambda: {**DECODER, "model_type": "llama"}, **sizes},
    )


def clip() -> dict[str, Any]:
    return {**VISION, "model_type": "clip_vision_model"}


vlm("llava", "LlavaConfig", "LlavaModel", 16, vision_config=clip, image_token_index=3)
vlm(
    "llava-next",
    "LlavaNextConfig",
    "LlavaNextModel",
    36,
    vision_config=clip,
    image_token_index=3,
    image_grid_pinpoints=[[32, 32]],
    inputs=lambda: {
        "pixel_values": noise(2, 2, 3, 32, 32),
        "image_sizes": torch.tensor([[32, 32], [32, 32]]),
    },
)
vlm(
    "paligemma",
    "PaliGemmaConfig",
    "PaliGemmaModel",
    16,
    vision_config=lambda: {
        **VISION,
        "model_type": "siglip_vision_model",
        "vision_use_head": False,
    },
    text_config=lambda: {**DECODER, "head_dim": 8, "model_type": "gemma"},
    image_token_index=3,
    projection_dim=32,
    impls=EAGER,  # with sdpa the library masks otherwise under any compiler
)
vlm(
    "idefics3",
    "Idefics3Config",
    "Idefics3Model",
    4,
    vision_config=lambda: dict(VISION),
    image_token_id=3,
    scale_factor=2,
    inputs=lambda: {"pixel_values": noise(2, 1, 3, 32, 32)},
)
vlm(
    "ovis2",
    "Ovis2Config",
    "Ovis2Model",
    16,
    vision_config=lambda: {**VISION, "vocab_size": 32, "num_visual_indicator_tokens": 5},
    text_config=lambda: {**DECODER, "model_type": "qwen2"},
    hidden_size=32,
    vocab_size=64,
    image_token_id=3,
    visual_indicator_token_ids=[60, 61, 62, 63, 59],
    why={"NOT_ATTENTION:pooling": "visual words: softmax over a vocabulary"},
)
vlm(
    "cohere2-vision",
    "Cohere2VisionConfig",
    "Cohere2VisionModel",
    4,
    vision_config=lambda: {
        **VISION,
        "model_type": "siglip_vision_model",
        "vision_use_head": False,
    },
    text_config=lambda: {**DECODER, "model_type": "llama"},
    image_token_id=3,
    alignment_intermediate_size=32,
)
model(
    "chameleon",
    "ChameleonConfig",
    "ChameleonModel",
    {
        **DECODER,
        "num_key_value_heads": 4,
        "vocabulary_map": lambda: {"<image>": 3},
        "vq_config": lambda: {
            "embed_dim": 8,
            "num_embeddings": 16,
            "latent_channels": 8,
            "resolution": 32,
            "base_channels": 32,
            "channel_multiplier": (1, 2),
            "num_res_blocks": 1,
        },
    },
    text,
)
model(
    "instructblip",
    "InstructBlipConfig",
    "InstructBlipForConditionalGeneration",
    {},
    lambda: {
        **image(),
        "qformer_input_ids": tokens(2, 5),
        "qformer_attention_mask": torch.ones(2, 5, dtype=torch.long),
        "input_ids": torch.cat([torch.full((2, 4), 2), tokens(2, 6)], 1),
        "attention_mask": torch.ones(2, 10, dtype=torch.long),
    },
    extra={
        "vision_config": lambda: dict(VISION),
        "qformer_config": lambda: {
            **SIZES,
            "encoder_hidden_size": 32,
            "cross_attention_frequency": 1,
        },
        "text_config": lambda: {
            **SIZES,
            "ffn_dim": 48,
            "word_embed_proj_dim": 32,
            "model_type": "opt",
        },
        "num_query_tokens": 4,
        "image_token_index": 2,
    },
)
model(
    "kosmos-2.5",
    "Kosmos2_5Config",
    "Kosmos2_5Model",
    {
        "text_config": lambda: {
            "vocab_size": 64,
            "max_position_embeddings": 64,
            "use_cache": False,
            **NARROW,
        },
        "vision_config": lambda: {
            **VISION,
            "patch_embed_hidden_size": 16,
            "head_dim": 8,
            "max_num_patches": 32,
        },
        "latent_query_num": 4,
    },
    lambda: {
        "input_ids": tokens(2, 12),
        "attention_mask": padding(),
        "flattened_patches": torch.cat(
            [torch.randint(1, 8, (2, 10, 2)).float(), noise(2, 10, 16)], -1
        ),
        "image_embeds_position_mask": torch.tensor([[0, 1, 1, 1, 1] + [0] * 7] * 2),
    },
)

# detection and matching
model(
    "conditional-detr",
    "ConditionalDetrConfig",
    "ConditionalDetrModel",
    DETECTOR,
    masked64,
    impls=EAGER,
)
model(
    "table-transformer",
    "TableTransformerConfig",
    "TableTransformerModel",
    DETECTOR,
    masked64,
    impls=EAGER,
)
model(
    "deformable-detr",
    "DeformableDetrConfig",
    "DeformableDetrModel",
    {**DETECTOR, "num_feature_levels": 1, "encoder_n_points": 2, "decoder_n_points": 2},
    masked64,
    impls=EAGER,
    why=POINTS_WEIGHTS,
)
REALTIME = {
    **DETECTOR,
    "backbone_config": lambda: config(
        "RTDetrResNetConfig", **CNN, out_features=["stage2", "stage3", "stage4"]
    ),
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [8, 16, 16],
    "decoder_in_channels": [32, 32, 32],
    "encoder_layers": 1,
    "decoder_n_points": [2, 2, 2],
    "num_denoising": 0,
    "hidden_expansion": 0.5,
}
model(
    "rt-detr",
    "RTDetrConfig",
    "RTDetrModel",
    {**REALTIME, "decoder_n_points": 2},
    image64,
    impls=EAGER,
    why=POINTS_WEIGHTS,
)
model(
    "maskformer",
    "MaskFormerConfig",
    "MaskFormerModel",
    {
        "backbone_config": lambda: config(
            "SwinConfig",
            **{**WINDOWS, "depths": [1, 1, 1, 1], "num_heads": [2, 2, 4, 4], "image_size": 64},
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        "decoder_config": lambda: config(
            "DetrConfig",
            **{
                **DETECTOR,
                "backbone_config": config("ResNetConfig", **CNN, out_features=["stage4"]),
            },
        ),
        "fpn_feature_size": 32,
        "mask_feature_size": 32,
    },
    image64,
    impls=EAGER,
)
POINTS = {
    "encoder_hidden_sizes": [8, 8, 16, 16],
    "decoder_hidden_size": 16,
    "keypoint_decoder_dim": 65,
    "descriptor_decoder_dim": 16,
    "max_keypoints": 8,
    "keypoint_threshold": 0.0,
}
model(
    "superglue",
    "SuperGlueConfig",
    "SuperGlueForKeypointMatching",
    {
        "keypoint_detector_config": lambda: config("SuperPointConfig", **POINTS),
        "hidden_size": 16,
        "keypoint_encoder_sizes": [8, 16],
        "gnn_layers_types": ["self", "cross"],
        "num_attention_heads": 2,
        "sinkhorn_iterations": 3,
    },
    lambda: {"pixel_values": noise(1, 2, 3, 32, 32)},
    impls=EAGER,
    why=CELLS,
)
model(
    "lightglue",
    "LightGlueConfig",
    "LightGlueForKeypointMatching",
    {
        "keypoint_detector_config": lambda: config("SuperPointConfig", **POINTS),
        "descriptor_dim": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    lambda: {"pixel_values": noise(1, 2, 3, 32, 32)},
    impls=EAGER,
    why={
        **CELLS,
        "NOT_CAPTURED": "assignment of keypoints: log-softmax of similarities, without values",
    },
)

# sound
model("hubert", "HubertConfig", "HubertModel", AUDIO, sound)
model(
    "sew-d",
    "SEWDConfig",
    "SEWDModel",
    {**AUDIO, "position_buckets": 8, "max_position_embeddings": 32},
    sound,
    impls=EAGER,
)
PARAKEET = {
    **VISION,
    "num_mel_bins": 16,
    "subsampling_conv_channels": 8,
    "subsampling_factor": 4,
    "conv_kernel_size": 5,
    "max_position_embeddings": 64,
}
model(
    "parakeet-encoder",
    "ParakeetEncoderConfig",
    "ParakeetEncoder",
    PARAKEET,
    lambda: {
        "input_features": noise(2, 40, 16),
        "attention_mask": torch.ones(2, 40, dtype=torch.long),
    },
    module="parakeet.modeling_parakeet",
)
model(
    "parakeet-ctc",
    "ParakeetCTCConfig",
    "ParakeetForCTC",
    {
        "vocab_size": 32,
        "encoder_config": lambda: {
            k: v
            for k, v in PARAKEET.items()
            if k not in ("image_size", "patch_size", "num_channels")
        },
    },
    lambda: {
        "input_features": noise(2, 40, 16),
        "attention_mask": torch.ones(2, 40, dtype=torch.long),
    },
)
model(
    "qwen2-audio-encoder",
    "Qwen2AudioEncoderConfig",
    "Qwen2AudioEncoder",
    {**SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 16},
    lambda: {"input_features": noise(2, 8, 32)},
)
model(
    "fun-asr-nano-encoder",
    "FunAsrNanoEncoderConfig",
    "FunAsrNanoEncoder",
    {
        **VISION,
        "num_mel_bins": 4,
        "num_stacked_frames": 4,
        "num_timestamp_prediction_layers": 1,
        "fsmn_kernel_size": 3,
    },
    lambda: {
        "input_features": noise(2, 10, 16),
        "input_features_mask": torch.ones(2, 10, dtype=torch.long),
    },
    module="fun_asr_nano.modeling_fun_asr_nano",
)
model(
    "clvp-encoder",
    "ClvpEncoderConfig",
    "ClvpEncoder",
    {**SIZES, "hidden_size": 64, "num_attention_heads": 2, "projection_dim": 16},
    text,
    impls=EAGER,
    module="clvp.modeling_clvp",
)
model(
    "clvp-decoder",
    "ClvpDecoderConfig",
    "ClvpDecoder",
    {**SIZES, "max_text_tokens": 64, "use_cache": False},
    text,
    impls=EAGER,
    module="clvp.modeling_clvp",
)
model(
    "canary-decoder",
    "CanaryDecoderConfig",
    "CanaryDecoder",
    {**BIG, "num_key_value_heads": 4},
    lambda: {**text(), "encoder_hidden_states": noise(2, 9, 32)},
    module="canary.modeling_canary",
)
DIA = {
    **DECODER,
    "head_dim": 8,
    "cross_num_attention_heads": 4,
    "cross_head_dim": 8,
    "cross_num_key_value_heads": 4,
    "cross_hidden_size": 32,
    "num_channels": 2,
}
model(
    "dia",
    "DiaConfig",
    "DiaModel",
    {
        "encoder_config": lambda: (
            {
                k: v
                for k, v in DIA.items()
                if "cross" not in k and k not in ("num_channels", "use_cache")
            }
            | {"num_key_value_heads": 4}
        ),
        "decoder_config": lambda: dict(DIA),
        "delay_pattern": [0, 1],
    },
    lambda: {**text(), "decoder_input_ids": tokens(2, 7, 2)},
)
model(
    "mimi",
    "MimiConfig",
    "MimiModel",
    {
        **DECODER,
        "num_key_value_heads": 4,
        "num_filters": 8,
        "upsampling_ratios": [4, 2],
        "codebook_size": 16,
        "codebook_dim": 8,
        "num_quantizers": 2,
        "vector_quantization_hidden_dimension": 8,
        "upsample_groups": 32,
        "sliding_window": 8,
    },
    lambda: {"input_values": noise(2, 1, 400)},
    extra={"use_cache": False},
)

# combinations
model(
    "encoder-decoder",
    "EncoderDecoderConfig",
    "EncoderDecoderModel",
    {},
    pair,
    extra={
        "encoder": lambda: {**SIZES, "model_type": "roberta"},
        "decoder": lambda: {
            **SIZES,
            "model_type": "roberta",
            "is_decoder": True,
            "add_cross_attention": True,
            "use_cache": False,
        },
    },
)
model(
    "speech-encoder-decoder",
    "SpeechEncoderDecoderConfig",
    "SpeechEncoderDecoderModel",
    {},
    lambda: {**sound(), "decoder_input_ids": tokens(2, 7)},
    extra={
        "encoder": lambda: {**AUDIO, "model_type": "hubert"},
        "decoder": lambda: {
            **SIZES,
            "model_type": "xlm-roberta",
            "is_decoder": True,
            "add_cross_attention": True,
            "use_cache": False,
        },
    },
)

# no attention
model(
    "bit",
    "BitConfig",
    "BitModel",
    {"embedding_size": 8, "hidden_sizes": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "num_groups": 2},
    image64,
    impls=EAGER,
)
model(
    "convnext",
    "ConvNextConfig",
    "ConvNextModel",
    {"hidden_sizes": (8, 8, 16, 16), "depths": (1, 1, 1, 1)},
    image64,
    impls=EAGER,
)
model("resnet", "ResNetConfig", "ResNetModel", CNN, image64, impls=EAGER)
model(
    "efficientnet",
    "EfficientNetConfig",
    "EfficientNetModel",
    {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320},
    image64,
    impls=EAGER,
    extra={"width_coefficient": 0.25},
)
model(
    "mobilenet-v2",
    "MobileNetV2Config",
    "MobileNetV2Model",
    {"image_size": 64, "depth_multiplier": 0.25},
    image64,
    impls=EAGER,
)
model(
    "focalnet",
    "FocalNetConfig",
    "FocalNetModel",
    {
        "image_size": 64,
        "embed_dim": 16,
        "hidden_sizes": (16, 32),
        "depths": (1, 1),
        "focal_levels": (2, 2),
        "focal_windows": (3, 3),
    },
    image64,
    impls=EAGER,
)
model(
    "patchtsmixer",
    "PatchTSMixerConfig",
    "PatchTSMixerModel",
    {"d_model": 8, "num_layers": 2, "num_input_channels": 3},
    lambda: {"past_values": noise(2, 32, 3)},
    impls=EAGER,
    why={"NOT_ATTENTION:router": "gated mixing: softmax of a projection, times its input"},
)
model(
    "superpoint",
    "SuperPointConfig",
    "SuperPointForKeypointDetection",
    POINTS,
    lambda: {"pixel_values": noise(1, 3, 32, 32)},
    impls=EAGER,
    why=CELLS,
)
model(
    "encodec",
    "EncodecConfig",
    "EncodecModel",
    {"hidden_size": 16, "num_filters": 4, "codebook_size": 16, "upsampling_ratios": (4, 2)},
    lambda: {"input_values": noise(2, 1, 400)},
    impls=EAGER,
)

# what is written like attention, in parts of larger models
model(
    "slanext",
    "SLANeXtConfig",
    "SLANeXtForTableRecognition",
    {
        "vision_config": lambda: {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 64,
            "patch_size": 8,
            "window_size": 4,
            "global_attn_indexes": [1],
            "mlp_dim": 48,
            "output_channels": 16,
        },
        "post_conv_in_channels": 16,
        "post_conv_out_channels": 24,
        "out_channels": 10,
        "hidden_size": 16,
        "max_text_length": 2,
    },
    image64,
    impls=EAGER,
    why={
        "NOT_ATTENTION:router": "additive attention: a projection of tanh(keys + state)",
        "NOT_CAPTURED": "softmax over characters",
    },
)
model(
    "nemotron-asr-streaming-encoder",
    "NemotronAsrStreamingEncoderConfig",
    "NemotronAsrStreamingEncoder",
    {**PARAKEET, "sliding_window": 8, "default_num_lookahead_tokens": 1, "use_cache": False},
    lambda: {
        "input_features": noise(2, 40, 16),
        "attention_mask": torch.ones(2, 40, dtype=torch.long),
    },
    module="nemotron_asr_streaming.modeling_nemotron_asr_streaming",
)
model(
    "pp-formulanet-text",
    "PPFormulaNetTextConfig",
    "PPFormulaNetTextModel",
    SEQ2SEQ,
    lambda: {**text(), "encoder_hidden_states": noise(2, 9, 32)},
    module="pp_formulanet.modeling_pp_formulanet",
)


class Folding(torch.nn.Module):
    """Weights that come from pairs alone: no queries and keys."""

    def __init__(self, average: torch.nn.Module, pool: torch.nn.Module) -> None:
        super().__init__()
        self.average, self.pool = average, pool

    def forward(self, rows: torch.Tensor, pairs: torch.Tensor, mask: torch.Tensor) -> Any:
        seen = mask[:, :, None] & mask[:, None]
        return self.average(rows, pairs, seen), self.pool(pairs, mask)


def folding(impl: str) -> Built:
    from transformers.models.esmfold2 import modeling_esmfold2 as library

    made = config(
        "EsmFold2Config",
        hidden_size=32,
        pairwise_hidden_size=16,
        msa_encoder={"hidden_size": 24, "num_attention_heads": 4, "head_dim": 8},
    )
    average = library.EsmFold2MSAPairWeightedAveraging(made)
    mask = padding(2, 7, 2).bool()
    inputs = noise(2, 7, 5, 24), noise(2, 7, 7, 16), mask
    return Folding(average, library.EsmFold2RowAttentionPooling(made)), inputs, {}


add(
    "transformers",
    "esmfold2",
    folding,
    EAGER,
    why={"NOT_ATTENTION:router": "softmax of a projection of pairs: no queries, no keys"},
)


def resampler(impl: str) -> Built:
    from transformers.models.evolla import modeling_evolla as library

    made = library.EvollaSequenceCompressorAttention(dim=32, dim_head=8, heads=4)
    return made, (noise(2, 9, 32), noise(2, 5, 32), torch.ones(2, 14)), {}


add("transformers", "evolla", resampler, EAGER)


def masks(impl: str) -> Built:
    from transformers.models.edgetam import modeling_edgetam as library

    made = library.EdgeTamMaskDecoderConfig(
        hidden_size=32, mlp_dim=48, num_attention_heads=4, iou_head_hidden_dim=16
    )
    made._attn_implementation = impl
    inputs = {
        "image_embeddings": noise(1, 32, 8, 8),
        "image_positional_embeddings": noise(1, 32, 8, 8),
        "sparse_prompt_embeddings": noise(1, 2, 3, 32),
        "dense_prompt_embeddings": noise(1, 32, 8, 8),
        "multimask_output": True,
        "high_resolution_features": [noise(1, 4, 32, 32), noise(1, 8, 16, 16)],
    }
    return library.EdgeTamMaskDecoder(made), (), inputs


add("transformers", "edgetam-mask-decoder", masks, BOTH)
