"""transformers: text, audio, vision, and what only looks like attention."""

from __future__ import annotations

from typing import Any

import torch

from zoo import BOTH, EAGER, Built, add, noise, padding, tokens

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DECODER = {**SIZES, "num_key_value_heads": 2, "use_cache": False}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "num_channels": 3,
}
GPT = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "use_cache": False,
}
SEQ2SEQ = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
T5 = {
    "vocab_size": 64,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "use_cache": False,
    "decoder_start_token_id": 0,
}
WINDOWS = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
AUDIO = {
    "vocab_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16, 16),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ROUTER = {"NOT_ATTENTION:router": "a gate over experts or classes: softmax of a projection"}


def text() -> dict[str, Any]:
    return {"input_ids": tokens(2, 12), "attention_mask": padding()}


def bare() -> dict[str, Any]:
    return {"input_ids": tokens(2, 12)}


def pair() -> dict[str, Any]:
    return {**text(), "decoder_input_ids": tokens(2, 7)}


def image(size: int = 32) -> dict[str, Any]:
    return {"pixel_values": noise(2, 3, size, size)}


def image64() -> dict[str, Any]:
    return image(64)


def sound() -> dict[str, Any]:
    mask = torch.ones(2, 800, dtype=torch.long)
    mask[1, 600:] = 0
    return {"input_values": noise(2, 800), "attention_mask": mask}


def model(
    name: str, config: str, cls: str, sizes: dict[str, Any], inputs: Any, **more: Any
) -> None:
    def build(impl: str) -> Built:
        import transformers as library

        made = getattr(library, config)(**{k: v() if callable(v) else v for k, v in sizes.items()})
        return getattr(library, cls)._from_config(made, attn_implementation=impl), (), inputs()

    more.setdefault("impls", BOTH)
    add("transformers", name, build, **more)


# encoders
model("roberta", "RobertaConfig", "RobertaModel", SIZES, text, sample=True)
model(
    "distilbert",
    "DistilBertConfig",
    "DistilBertModel",
    {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    text,
)
model("electra", "ElectraConfig", "ElectraModel", {**SIZES, "embedding_size": 16}, text)
model(
    "deberta",
    "DebertaConfig",
    "DebertaModel",
    {
        **SIZES,
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "max_relative_positions": 32,
    },
    text,
    impls=EAGER,
    why={
        "CROSS_GRAPH": "scripted helpers break the graph between q k^T and softmax: the product "
        "stands in another graph, so nothing can be rewritten"
    },
)
model(
    "funnel",
    "FunnelConfig",
    "FunnelModel",
    {
        "vocab_size": 64,
        "d_model": 32,
        "block_sizes": [1, 1],
        "num_decoder_layers": 1,
        "n_head": 4,
        "d_head": 8,
        "d_inner": 48,
    },
    text,
    impls=EAGER,
)
model(
    "canine",
    "CanineConfig",
    "CanineModel",
    {**SIZES, "num_hash_buckets": 64, "downsampling_rate": 4, "local_transformer_stride": 8},
    text,
    impls=EAGER,
)
model("splinter", "SplinterConfig", "SplinterModel", SIZES, text, impls=EAGER)
model("nomic-bert", "NomicBertConfig", "NomicBertModel", SIZES, text)
model("fnet", "FNetConfig", "FNetModel", {**SIZES, "tpu_short_seq_length": 12}, bare, impls=EAGER)

# decoders
model("gpt2", "GPT2Config", "GPT2LMHeadModel", GPT, text, sample=True)
model(
    "gpt-neo",
    "GPTNeoConfig",
    "GPTNeoModel",
    {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_layers": 2,
        "attention_types": [[["global", "local"], 1]],
        "num_heads": 4,
        "window_size": 4,
        "max_position_embeddings": 64,
        "use_cache": False,
    },
    text,
    impls=EAGER,
)
model("gptj", "GPTJConfig", "GPTJModel", {**GPT, "rotary_dim": 4}, text, impls=EAGER)
model("gpt-bigcode", "GPTBigCodeConfig", "GPTBigCodeModel", {**GPT, "multi_query": True}, text)
model(
    "opt",
    "OPTConfig",
    "OPTModel",
    {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32, "use_cache": False},
    text,
)
model(
    "bloom",
    "BloomConfig",
    "BloomModel",
    {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4, "use_cache": False},
    text,
    impls=EAGER,
    sample=True,
)
model(
    "falcon-alibi",
    "FalconConfig",
    "FalconModel",
    {
        **SIZES,
        "new_decoder_architecture": False,
        "multi_query": False,
        "alibi": True,
        "use_cache": False,
    },
    text,
)
model("llama", "LlamaConfig", "LlamaForCausalLM", DECODER, text, sample=True)
model("llama-unmasked", "LlamaConfig", "LlamaForCausalLM", DECODER, bare)
model(
    "mistral", "MistralConfig", "MistralModel", {**DECODER, "sliding_window": 4}, text, sample=True
)
model(
    "qwen3-next",
    "Qwen3NextConfig",
    "Qwen3NextModel",
    {
        **DECODER,
        **EXPERTS,
        "head_dim": 8,
        "shared_expert_intermediate_size": 16,
        "num_hidden_layers": 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    text,
    why=ROUTER,
)
model(
    "mixtral",
    "MixtralConfig",
    "MixtralModel",
    {**DECODER, "num_local_experts": 4},
    text,
    impls=EAGER,
    why=ROUTER,
)
model(
    "gemma2",
    "Gemma2Config",
    "Gemma2Model",
    {
        **DECODER,
        "head_dim": 8,
        "sliding_window": 4,
        "attn_logit_softcapping": 50.0,
        "query_pre_attn_scalar": 8,
    },
    text,
    impls=EAGER,
    sample=True,
)
model(
    "gpt-oss",
    "GptOssConfig",
    "GptOssModel",
    {
        **DECODER,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 4,
    },
    text,
    impls=EAGER,
    why=ROUTER,
    sample=True,
)
model("phi", "PhiConfig", "PhiModel", {**SIZES, "use_cache": False}, text)
model("olmo2", "Olmo2Config", "Olmo2Model", DECODER, text)
model(
    "deepseek-v3",
    "DeepseekV3Config",
    "DeepseekV3Model",
    {
        **DECODER,
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "head_dim": 4,
        "n_routed_experts": 4,
        "moe_intermediate_size": 16,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": 1,
    },
    text,
    sample=True,
)
model(
    "xglm",
    "XGLMConfig",
    "XGLMModel",
    {
        "vocab_size": 64,
        "d_model": 32,
        "num_layers": 2,
        "attention_heads": 4,
        "ffn_dim": 48,
        "max_position_embeddings": 64,
        "use_cache": False,
    },
    text,
    impls=EAGER,
)
model(
    "jamba",
    "JambaConfig",
    "JambaModel",
    {
        **DECODER,
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "mamba_d_state": 4,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "use_mamba_kernels": False,
    },
    text,
    impls=EAGER,
    why=ROUTER,
)
model(
    "llama4-text",
    "Llama4TextConfig",
    "Llama4TextModel",
    {
        **DECODER,
        "head_dim": 8,
        "num_local_experts": 2,
        "intermediate_size_mlp": 48,
        "attention_chunk_size": 4,
        "num_hidden_layers": 4,
    },
    text,
)
model("diffllama", "DiffLlamaConfig", "DiffLlamaModel", DECODER, text)
model(
    "mamba",
    "MambaConfig",
    "MambaModel",
    {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 4,
        "use_cache": False,
    },
    bare,
    impls=EAGER,
)

# encoder-decoders
model("t5", "T5Config", "T5Model", T5, pair, sample=True)
model(
    "switch-transformers",
    "SwitchTransformersConfig",
    "SwitchTransformersModel",
    {
        **T5,
        "num_decoder_layers": 2,
        "num_experts": 2,
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
    },
    pair,
    impls=EAGER,
    why=ROUTER,
)
model("bart", "BartConfig", "BartModel", SEQ2SEQ, pair, sample=True)
model(
    "led",
    "LEDConfig",
    "LEDModel",
    {
        **SEQ2SEQ,
        "attention_window": 4,
        "max_encoder_position_embeddings": 64,
        "max_decoder_position_embeddings": 64,
    },
    pair,
    impls=EAGER,
    why={
        "UNKNOWN_SCORE_OP:slice_scatter": "block-sparse: the band of the map is stored by "
        "diagonals, its columns are offsets and no keys"
    },
)
model(
    "prophetnet",
    "ProphetNetConfig",
    "ProphetNetModel",
    {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_encoder_attention_heads": 4,
        "num_decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "max_position_embeddings": 64,
        "use_cache": False,
        "disable_ngram_loss": True,
    },
    pair,
    impls=EAGER,
)
model(
    "fsmt",
    "FSMTConfig",
    "FSMTModel",
    {
        "src_vocab_size": 64,
        "tgt_vocab_size": 64,
        "langs": ["en", "de"],
        **{k: v for k, v in SEQ2SEQ.items() if not k.startswith(("vocab", "pad", "bos", "eos"))},
    },
    pair,
    impls=EAGER,
)

# sound
model("wav2vec2", "Wav2Vec2Config", "Wav2Vec2Model", AUDIO, sound)
model(
    "wav2vec2-conformer",
    "Wav2Vec2ConformerConfig",
    "Wav2Vec2ConformerModel",
    {**AUDIO, "position_embeddings_type": "relative", "conv_depthwise_kernel_size": 7},
    sound,
)
model(
    "whisper",
    "WhisperConfig",
    "WhisperModel",
    {
        **SEQ2SEQ,
        "num_mel_bins": 8,
        "max_source_positions": 16,
        "max_target_positions": 16,
        "decoder_start_token_id": 1,
    },
    lambda: {"input_features": noise(2, 8, 32), "decoder_input_ids": tokens(2, 7)},
)
model(
    "speecht5",
    "SpeechT5Config",
    "SpeechT5ForSpeechToText",
    {
        **AUDIO,
        **{k: v for k, v in SEQ2SEQ.items() if "layers" in k or "heads" in k or "ffn" in k},
        "use_cache": False,
    },
    lambda: {"input_values": noise(2, 800), "decoder_input_ids": tokens(2, 7, upto=30)},
    impls=EAGER,
)

# images
model("deit", "DeiTConfig", "DeiTModel", VISION, image)
model(
    "data2vec-vision",
    "Data2VecVisionConfig",
    "Data2VecVisionModel",
    {**VISION, "use_relative_position_bias": True},
    image,
)
model("swin", "SwinConfig", "SwinModel", WINDOWS, image)
model("swinv2", "Swinv2Config", "Swinv2Model", WINDOWS, image, impls=EAGER, sample=True)
model("dinov3-vit", "DINOv3ViTConfig", "DINOv3ViTModel", VISION, image)
model(
    "siglip",
    "SiglipConfig",
    "SiglipModel",
    {"text_config": lambda: dict(SIZES), "vision_config": lambda: dict(VISION)},
    lambda: {**bare(), **image()},
    sample=True,
)
model(
    "clipseg",
    "CLIPSegConfig",
    "CLIPSegForImageSegmentation",
    {
        "text_config": lambda: dict(SIZES),
        "vision_config": lambda: dict(VISION),
        "projection_dim": 16,
        "extract_layers": [0, 1],
        "reduce_dim": 16,
        "decoder_num_attention_heads": 4,
        "decoder_intermediate_size": 32,
    },
    lambda: {**text(), **image()},
)
model(
    "mobilevit",
    "MobileViTConfig",
    "MobileViTModel",
    {
        "image_size": 64,
        "hidden_sizes": [16, 24, 32],
        "num_attention_heads": 4,
        "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 64],
    },
    image64,
    impls=EAGER,
)
model(
    "mobilevitv2",
    "MobileViTV2Config",
    "MobileViTV2Model",
    {"image_size": 64, "width_multiplier": 0.25},
    image64,
    impls=EAGER,
    why={"NOT_ATTENTION:router": "linear attention: context scores are softmax of a projection"},
)
model(
    "vjepa2",
    "VJEPA2Config",
    "VJEPA2Model",
    {
        **VISION,
        "crop_size": 32,
        "frames_per_clip": 4,
        "pred_hidden_size": 16,
        "pred_num_attention_heads": 4,
        "pred_num_hidden_layers": 1,
        "tubelet_size": 2,
    },
    lambda: {"pixel_values_videos": noise(2, 4, 3, 32, 32)},
    impls=EAGER,
)
model(
    "segformer",
    "SegformerConfig",
    "SegformerModel",
    {
        "num_encoder_blocks": 2,
        "depths": [1, 1],
        "sr_ratios": [4, 2],
        "hidden_sizes": [16, 32],
        "num_attention_heads": [1, 2],
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "mlp_ratios": [2, 2],
    },
    image64,
)
model(
    "pvt",
    "PvtConfig",
    "PvtModel",
    {
        "image_size": 64,
        "depths": [1, 1, 1, 1],
        "sequence_reduction_ratios": [8, 4, 2, 1],
        "hidden_sizes": [16, 32, 32, 48],
        "num_attention_heads": [1, 2, 2, 2],
        "mlp_ratios": [2, 2, 2, 2],
    },
    image64,
    impls=EAGER,
)
model(
    "hiera",
    "HieraConfig",
    "HieraModel",
    {"image_size": [64, 64], "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]},
    image64,
    impls=EAGER,
)
model("imagegpt", "ImageGPTConfig", "ImageGPTModel", GPT, bare, impls=EAGER)
model(
    "sam",
    "SamVisionConfig",
    "SamVisionModel",
    {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 4,
        "window_size": 4,
        "global_attn_indexes": [1],
        "mlp_dim": 48,
        "output_channels": 16,
    },
    image,
)
model(
    "detr",
    "DetrConfig",
    "DetrModel",
    {
        **{
            k: v
            for k, v in SEQ2SEQ.items()
            if k
            not in (
                "vocab_size",
                "max_position_embeddings",
                "use_cache",
                "pad_token_id",
                "bos_token_id",
                "eos_token_id",
            )
        },
        "use_timm_backbone": False,
        "backbone": None,
        "use_pretrained_backbone": False,
        "num_queries": 6,
        "backbone_config": lambda: __import__("transformers").ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 8, 16, 16],
            depths=[1, 1, 1, 1],
            out_features=["stage4"],
        ),
    },
    lambda: {**image64(), "pixel_mask": torch.ones(2, 64, 64, dtype=torch.long)},
    impls=EAGER,
)
model(
    "perceiver",
    "PerceiverConfig",
    "PerceiverModel",
    {
        "num_latents": 8,
        "d_latents": 32,
        "d_model": 24,
        "num_blocks": 1,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 4,
        "num_cross_attention_heads": 2,
    },
    lambda: {"inputs": noise(2, 20, 24)},
    impls=EAGER,
)
model(
    "layoutlmv3",
    "LayoutLMv3Config",
    "LayoutLMv3Model",
    {
        **SIZES,
        "coordinate_size": 4,
        "shape_size": 8,
        "visual_embed": False,
        "rel_pos_bins": 8,
        "rel_2d_pos_bins": 8,
        "max_rel_pos": 16,
        "max_rel_2d_pos": 16,
        "max_2d_position_embeddings": 64,
    },
    lambda: {**text(), "bbox": tokens(2, 12, 4, upto=30)},
    impls=EAGER,
)
model(
    "blip2-qformer",
    "Blip2QFormerConfig",
    "Blip2QFormerModel",
    {**SIZES, "encoder_hidden_size": 24, "cross_attention_frequency": 1},
    lambda: {"query_embeds": noise(2, 6, 32), "encoder_hidden_states": noise(2, 10, 24)},
)
model(
    "decision-transformer",
    "DecisionTransformerConfig",
    "DecisionTransformerModel",
    {"state_dim": 5, "act_dim": 3, "hidden_size": 32, "n_layer": 2, "n_head": 4, "max_ep_len": 50},
    lambda: {
        "states": noise(2, 6, 5),
        "actions": noise(2, 6, 3),
        "rewards": noise(2, 6, 1),
        "returns_to_go": noise(2, 6, 1),
        "timesteps": tokens(2, 6, upto=20),
        "attention_mask": torch.ones(2, 6, dtype=torch.long),
    },
    impls=EAGER,
)
model(
    "informer",
    "InformerConfig",
    "InformerModel",
    {
        "prediction_length": 4,
        "context_length": 8,
        "lags_sequence": [1, 2],
        "num_time_features": 1,
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "use_cache": False,
    },
    lambda: {
        "past_values": noise(2, 10),
        "past_time_features": noise(2, 10, 1),
        "past_observed_mask": torch.ones(2, 10),
        "future_values": noise(2, 4),
        "future_time_features": noise(2, 4, 1),
    },
    impls=EAGER,
)


class Decode(torch.nn.Module):
    """One step of decoding: keys and values of earlier tokens come from a cache."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: torch.Tensor, past: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, (k, v) in enumerate(past):
            cache.update(k, v, layer)
        return self.inner(ids, past_key_values=cache, use_cache=True).logits


def cached(length: int):
    def build(impl: str) -> Built:
        import transformers as library

        config = library.LlamaConfig(**{**DECODER, "use_cache": True})
        made = library.LlamaForCausalLM._from_config(config, attn_implementation=impl)
        past = [(noise(2, 2, 9, 8), noise(2, 2, 9, 8)) for _ in range(2)]
        return Decode(made), (tokens(2, length), past), {}

    return build


add("transformers", "llama-cache-one-token", cached(1), BOTH, sample=True)
add("transformers", "llama-cache-chunk", cached(3), BOTH)
