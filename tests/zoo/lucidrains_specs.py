"""Research packages of Phil Wang: one idea each, einsum and rearrange throughout."""

from __future__ import annotations

from typing import Any

import torch

from zoo import noise, packaged, tokens
from zoo.packaged import LINEAR, Inputs, features, model, words

KERNEL = "linear attention: exp of a random projection"
SLOTS = "slots compete: softmax over queries, renormalised over keys"


def two() -> tuple[Any, ...]:
    """The same with a context."""
    return noise(2, 16, 32), noise(2, 12, 32)


def image(size: int = 32, channels: int = 3) -> Inputs:
    """Two square images."""
    return packaged.image(size, channels, batch=2)


HEADS = {"dim": 32, "heads": 4, "dim_head": 8}
DEEP = {**HEADS, "depth": 2}
LM = {**DEEP, "num_tokens": 64}


def adjacency(size: int = 16, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, size, size) < 0.4


model(
    "adjacent-attention-pytorch",
    "adjacent_attention_network.AdjacentAttentionNetwork",
    {**DEEP, "num_neighbors_cutoff": 6},
    lambda: (noise(2, 16, 32), adjacency()),
)
model(
    "axial-attention",
    "axial_attention.AxialAttention",
    {"dim": 32, "dim_index": 1, "heads": 4, "num_dimensions": 2},
    image(8, 32),
)
model(
    "axial-attention",
    "axial_attention.AxialImageTransformer",
    {"dim": 32, "depth": 2, "heads": 4, "dim_index": 1, "reversible": False},
    image(8, 32),
)
model(
    "axial-attention",
    "axial_attention.axial_attention.SelfAttention",
    {"dim": 32, "heads": 4},
    features,
)
model(
    "bidirectional-cross-attention",
    "bidirectional_cross_attention.BidirectionalCrossAttention",
    {**HEADS, "context_dim": 32},
    two,
)
model(
    "bidirectional-cross-attention",
    "bidirectional_cross_attention.BidirectionalCrossAttentionTransformer",
    {**DEEP, "context_dim": 32},
    two,
)
model(
    "block-recurrent-transformer-pytorch",
    "block_recurrent_transformer_pytorch.BlockRecurrentTransformer",
    {**LM, "max_seq_len": 16, "block_width": 8, "num_state_vectors": 8, "recurrent_layers": (2,)},
    words,
)
model(
    "bottleneck-transformer-pytorch",
    "bottleneck_transformer_pytorch.BottleStack",
    {"dim": 16, "fmap_size": 8, "dim_out": 32, "heads": 2, "dim_head": 8, "rel_pos_emb": True},
    image(8, 16),
)
model(
    "complex-valued-transformer",
    "complex_valued_transformer.complex_valued_transformer.ComplexMultiheadAttention",
    {**HEADS, "causal": True},
    lambda: (torch.complex(noise(2, 16, 32), noise(2, 16, 32)),),
)
model(
    "compositional-attention-pytorch",
    "compositional_attention_pytorch.CompositionalAttention",
    {"dim": 32, "dim_head": 8, "num_searches": 4, "num_retrievals": 2, "causal": True},
    features,
)
model("conformer", "conformer.Conformer", {**DEEP, "conv_kernel_size": 5}, features)
model(
    "cross-transformers-pytorch",
    "cross_transformers_pytorch.CrossTransformer",
    {"dim": 8, "dim_key": 8, "dim_value": 8},
    lambda: (torch.nn.Conv2d(3, 8, 4, 4), noise(1, 3, 16, 16), noise(1, 2, 2, 3, 16, 16)),
)
model("deep-cross-attention", "deep_cross_attention.DCAGPT", LM, words)
model("deep-cross-attention", "deep_cross_attention.GPT", LM, words)
model(
    "En-transformer",
    "en_transformer.EnTransformer",
    {**DEEP, "edge_dim": 4, "dim_head": 32},
    lambda: (noise(2, 16, 32), noise(2, 16, 3), noise(2, 16, 16, 4)),
    mixed=4,  # softmax of a perceptron of the products: for values, and for coordinates
)
model("egnn-pytorch", "egnn_pytorch.egnn_pytorch.GlobalLinearAttention", HEADS, two)
model(
    "feedback-transformer-pytorch",
    "feedback_transformer_pytorch.FeedbackTransformer",
    {**LM, "mem_len": 6, "seq_len": 2},
    lambda: (tokens(2, 6),),
    why={"NOT_ATTENTION:pooling": "softmax of the layers' weights, a parameter"},
)
model(
    "FLASH-pytorch",
    "flash_pytorch.FLASH",
    {"dim": 32, "group_size": 8, "query_key_dim": 16, "causal": True},
    features,
)
model(
    "flamingo-pytorch",
    "flamingo_pytorch.flamingo_pytorch.PerceiverAttention",
    HEADS,
    lambda: (noise(2, 2, 16, 32), noise(2, 2, 4, 32)),
)
model(
    "flamingo-pytorch",
    "flamingo_pytorch.flamingo_pytorch.MaskedCrossAttention",
    HEADS,
    lambda: (noise(2, 16, 32), noise(2, 2, 4, 32), {"media_locations": media()}),
)
model(
    "g-mlp-pytorch",
    "g_mlp_pytorch.gMLP",
    {"num_tokens": 64, "dim": 32, "depth": 2, "seq_len": 16, "attn_dim": 8, "causal": True},
    words,
)
model(
    "g-mlp-pytorch",
    "g_mlp_pytorch.gMLPVision",
    {"image_size": 32, "patch_size": 8, "num_classes": 4, "dim": 32, "depth": 2, "attn_dim": 8},
    image(),
)
model(
    "gated-state-spaces-pytorch",
    "gated_state_spaces_pytorch.gss.GSS",
    {"dim": 32, "dss_kernel_N": 16, "dss_kernel_H": 16},
    features,
)
model(
    "gated-state-spaces-pytorch",
    "gated_state_spaces_pytorch.mhesa.MHESA",
    {"dim": 32, "heads": 4},
    features,
)
model(
    "gateloop-transformer",
    "gateloop_transformer.gateloop_transformer.CausalFullAttention",
    {**HEADS, "rotary_emb": True, "add_swish_gating": True},
    features,
)
model(
    "gateloop-transformer",
    "gateloop_transformer.Transformer",
    {**LM, "use_gate_looped_attn": False},
    words,
)
model(
    "glom-pytorch",
    "glom_pytorch.Glom",
    {"dim": 16, "levels": 3, "image_size": 16, "patch_size": 4},
    lambda: (noise(1, 3, 16, 16), {"iters": 2}),
    mixed=1,  # attention of a parameter
    why={
        "UNKNOWN_SCORE_OP:masked_fill": "the first iteration attends to a parameter",
    },
)
model(
    "graph-transformer-pytorch",
    "graph_transformer_pytorch.GraphTransformer",
    {**DEEP, "edge_dim": 8, "with_feedforwards": True, "rel_pos_emb": True},
    lambda: (noise(2, 16, 32), noise(2, 16, 16, 8)),
)
model(
    "gsa-pytorch",
    "gsa_pytorch.GSA",
    {"dim": 16, "dim_key": 8, "heads": 2, "rel_pos_length": 8},
    image(8, 16),
    why={"NOT_ATTENTION:router": LINEAR},
)
model(
    "h-transformer-1d",
    "h_transformer_1d.h_transformer_1d.CausalHAttention1D",
    {**HEADS, "max_seq_len": 16, "block_size": 4},
    features,
    why={"UNKNOWN_SOFTMAX": "exp of several products, divided by the sum over all levels"},
)
model(
    "halonet-pytorch",
    "halonet_pytorch.HaloAttention",
    {"dim": 16, "block_size": 4, "halo_size": 2, "dim_head": 8, "heads": 2},
    image(8, 16),
)
model(
    "hourglass-transformer-pytorch",
    "hourglass_transformer_pytorch.HourglassTransformerLM",
    {
        "num_tokens": 64,
        "dim": 32,
        "max_seq_len": 16,
        "depth": (1, 1, 1),
        "shorten_factor": 2,
        "heads": 4,
        "dim_head": 8,
    },
    words,
)
model(
    "iTransformer",
    "iTransformer.iTransformer2D",
    {**DEEP, "num_variates": 5, "lookback_len": 12, "num_time_tokens": 4, "pred_length": 4},
    lambda: (noise(2, 12, 5),),
)
model("infini-transformer-pytorch", "infini_transformer_pytorch.InfiniTransformer", LM, words)
model(
    "infini-transformer-pytorch",
    "infini_transformer_pytorch.infini_transformer.CausalAttention",
    HEADS,
    features,
)
model("isab-pytorch", "isab_pytorch.ISAB", {"dim": 32, "heads": 4, "num_latents": 6}, features)
model(
    "kronecker-attention-pytorch",
    "kronecker_attention_pytorch.KroneckerSelfAttention",
    {"dim": 32, "heads": 4, "dim_heads": 8},
    image(8, 32),
)
model(
    "lambda-networks",
    "lambda_networks.LambdaLayer",
    {"dim": 16, "dim_out": 16, "r": 5, "dim_k": 4, "heads": 2, "dim_u": 1},
    image(8, 16),
    why={"CROSS_GRAPH": "softmax of keys alone"},
)
model(
    "linear-attention-transformer",
    "linear_attention_transformer.LinearAttentionTransformer",
    {
        "dim": 32,
        "depth": 2,
        "max_seq_len": 16,
        "heads": 4,
        "n_local_attn_heads": 2,
        "local_attn_window_size": 4,
    },
    features,
    why={"NOT_ATTENTION:router": LINEAR},
)
model(
    "linear-attention-transformer",
    "linear_attention_transformer.images.ImageLinearAttention",
    {"chan": 16, "key_dim": 8, "value_dim": 8, "heads": 2},
    image(8, 16),
    why={"CROSS_GRAPH": LINEAR},
)
model(
    "local-attention",
    "local_attention.LocalTransformer",
    {**LM, "max_seq_len": 16, "local_attn_window_size": 4},
    words,
)
model(
    "lookahead-keys-attention",
    "lookahead_keys_attention.Castle",
    {**HEADS, "use_triton": False},
    features,
)
model(
    "make-a-video-pytorch",
    "make_a_video_pytorch.SpatioTemporalAttention",
    {**HEADS, "causal_time_attn": True},
    lambda: (noise(1, 32, 3, 4, 4),),
)
model(
    "med-seg-diff-pytorch",
    "med_seg_diff_pytorch.Unet",
    {
        "dim": 16,
        "image_size": 32,
        "dim_mults": (1, 2),
        "full_self_attn": (False, True),
        "attn_dim_head": 8,
        "attn_heads": 2,
        "conditioning_kwargs": {"dim_head": 8, "heads": 2, "depth": 1, "patch_size": 8},
    },
    lambda: (noise(1, 1, 32, 32), torch.tensor([5]), noise(1, 3, 32, 32)),
    why={"NOT_ATTENTION:router": LINEAR},
)
model(
    "Mega-pytorch",
    "mega_pytorch.Mega",
    {
        "dim": 32,
        "num_tokens": 64,
        "depth": 2,
        "ema_heads": 4,
        "attn_dim_qk": 8,
        "attn_dim_value": 16,
    },
    words,
)
model(
    "memformer",
    "memformer.Memformer",
    {
        "dim": 32,
        "num_memory_slots": 8,
        "enc_num_tokens": 64,
        "enc_depth": 1,
        "enc_heads": 4,
        "enc_max_seq_len": 16,
        "dec_num_tokens": 64,
        "dec_depth": 1,
        "dec_heads": 4,
        "dec_max_seq_len": 16,
    },
    lambda: (tokens(2, 16), tokens(2, 12)),
)
model(
    "memory-transformer-xl",
    "memory_transformer_xl.memory_transformer_xl.SelfAttention",
    {"dim": 32, "seq_len": 16, "mem_len": 8, "lmem_len": 4, "heads": 4},
    lambda: (
        noise(2, 16, 32),
        {"memories": (noise(2, 8, 32), noise(2, 4, 32)), "pos_emb": noise(4, 32, 8)},
    ),
)
model(
    "mixture-of-attention",
    "mixture_of_attention.MixtureOfAttention",
    {
        **HEADS,
        "num_routed_queries": 4,
        "num_routed_key_values": 4,
        "use_triton": False,
        "flash_attn": False,
    },
    features,
)
model(
    "mixture-of-attention",
    "mixture_of_attention.MixtureOfAutoregressiveAttention",
    {
        **HEADS,
        "num_routed_queries": 4,
        "num_routed_key_values": 4,
        "local_attn_window_size": 8,
        "flash_attn": False,
    },
    features,
)
model(
    "molecule-attention-transformer",
    "molecule_attention_transformer.MAT",
    {"dim_in": 16, "model_dim": 32, "dim_out": 4, "depth": 2, "heads": 4},
    lambda: (
        noise(2, 16, 16),
        {
            "adjacency_mat": adjacency(),
            "distance_mat": torch.rand(2, 16, 16),
            "mask": torch.ones(2, 16).bool(),
        },
    ),
)
model("nGPT-pytorch", "nGPT_pytorch.nTransformer.nTransformer", DEEP, features)
model(
    "native-sparse-attention-pytorch",
    "native_sparse_attention_pytorch.transformer.Attention",
    {**HEADS, "kv_heads": 2},
    features,
)
model(
    "omninet-pytorch",
    "omninet_pytorch.Omninet",
    {**DEEP, "pool_layer_tokens_every": 2},
    features,
    why={"UNKNOWN_SOFTMAX": KERNEL},
)
model("PaLM-pytorch", "palm_pytorch.PaLM", LM, words)
model(
    "parti-pytorch",
    "parti_pytorch.parti_pytorch.Attention",
    {**HEADS, "context_dim": 32, "causal": False},
    lambda: (noise(2, 16, 32), noise(2, 12, 32), torch.ones(2, 12).bool()),
)
model(
    "parti-pytorch",
    "parti_pytorch.vit_vqgan.Transformer",
    {"dim": 32, "layers": 2, "dim_head": 8, "heads": 4, "fmap_size": 4},
    image(4, 32),
)
model(
    "perceiver-pytorch",
    "perceiver_pytorch.Perceiver",
    {
        "num_freq_bands": 2,
        "depth": 2,
        "max_freq": 4.0,
        "num_latents": 6,
        "latent_dim": 32,
        "latent_heads": 4,
        "cross_dim_head": 8,
        "latent_dim_head": 8,
        "num_classes": 4,
    },
    lambda: (noise(2, 8, 8, 3),),
)
model(
    "perceiver-pytorch",
    "perceiver_pytorch.PerceiverIO",
    {
        "depth": 2,
        "dim": 16,
        "queries_dim": 16,
        "logits_dim": 4,
        "num_latents": 6,
        "latent_dim": 32,
        "latent_heads": 4,
        "cross_dim_head": 8,
        "latent_dim_head": 8,
    },
    lambda: (noise(2, 12, 16), {"queries": noise(5, 16), "mask": torch.rand(2, 12) < 0.8}),
)
model(
    "performer-pytorch",
    "performer_pytorch.PerformerLM",
    {**LM, "max_seq_len": 16, "causal": False, "local_attn_heads": 2, "local_window_size": 4},
    words,
    why={"UNKNOWN_SOFTMAX": KERNEL},
)
model(
    "ponder-transformer",
    "ponder_transformer.PonderTransformer",
    {"num_tokens": 64, "dim": 32, "max_seq_len": 16, "heads": 4, "dim_head": 8},
    words,
    mixed=-2,  # one graph runs three times
)
model(
    "product_key_memory",
    "product_key_memory.PKM",
    {"dim": 32, "heads": 2, "num_keys": 16, "topk": 4, "dim_head": 8},
    features,
    why={"UNKNOWN_SCORE_OP:add": "scores of product keys, parameters"},
)
model(
    "PEER-pytorch",
    "PEER_pytorch.PEER",
    {"dim": 32, "heads": 2, "num_experts": 64, "num_experts_per_head": 4},
    features,
)
model(
    "protein-bert-pytorch",
    "protein_bert_pytorch.ProteinBERT",
    {
        "num_annotation": 12,
        "dim": 32,
        "dim_global": 16,
        "depth": 2,
        "attn_heads": 4,
        "attn_dim_head": 8,
        "local_self_attn": True,
        "local_to_global_attn": True,
    },
    lambda: (tokens(2, 16, upto=20), torch.randint(0, 2, (2, 12)).float()),
    why={"NOT_ATTENTION:router": LINEAR},
)
model(
    "q-transformer",
    "q_transformer.q_robotic_transformer.Transformer",
    {**DEEP, "flash_attn": False, "causal": True},
    features,
)
model(
    "q-transformer",
    "q_transformer.q_robotic_transformer.QHeadMultipleActions",
    {
        "dim": 32,
        "num_actions": 3,
        "action_bins": 8,
        "attn_depth": 1,
        "attn_dim_head": 8,
        "attn_heads": 4,
    },
    lambda: (noise(2, 6, 32), torch.randint(0, 8, (2, 2))),
)
model(
    "recurrent-memory-transformer-pytorch",
    "recurrent_memory_transformer_pytorch.recurrent_memory_transformer.Attention",
    HEADS,
    lambda: (noise(2, 16, 32), None),
)
model(
    "reformer-pytorch",
    "reformer_pytorch.ReformerLM",
    {**LM, "max_seq_len": 16, "bucket_size": 4, "n_hashes": 2, "causal": True, "ff_chunks": 1},
    words,
    mixed=2,  # softmax spelled with logsumexp
    why={"UNKNOWN_SCORE_OP:gather": "weights of the rounds of hashing"},
)
model(
    "reformer-pytorch",
    "reformer_pytorch.LSHSelfAttention",
    {"dim": 32, "heads": 4, "bucket_size": 4, "n_hashes": 2, "use_full_attn": True},
    features,
)
model(
    "ring-attention-pytorch",
    "ring_attention_pytorch.RingAttention",
    {
        **HEADS,
        "causal": True,
        "bucket_size": 8,
        "rotary_embed": True,
        "force_regular_attn": True,
        "num_grouped_query_heads": 2,
        "use_cuda_kernel": False,
    },
    features,
)
model(
    "RIN-pytorch",
    "rin_pytorch.RIN",
    {
        "dim": 32,
        "image_size": 16,
        "patch_size": 4,
        "depth": 1,
        "latent_self_attn_depth": 1,
        "num_latents": 6,
        "heads": 4,
        "dim_head": 8,
    },
    lambda: (noise(2, 3, 16, 16), torch.rand(2)),
    why={"NOT_ATTENTION:router": LINEAR},
)
model(
    "robotic-transformer-pytorch",
    "robotic_transformer_pytorch.MaxViT",
    {
        "num_classes": 4,
        "dim": 16,
        "depth": (1,),
        "dim_head": 8,
        "window_size": 4,
        "dim_conv_stem": 8,
    },
    image(16),
)
model(
    "robotic-transformer-pytorch",
    "robotic_transformer_pytorch.robotic_transformer_pytorch.TransformerAttention",
    {**HEADS, "causal": True},
    features,
)
model(
    "routing-transformer",
    "routing_transformer.RoutingTransformer",
    {
        "dim": 32,
        "depth": 2,
        "max_seq_len": 16,
        "heads": 4,
        "window_size": 4,
        "local_attn_window_size": 4,
        "n_local_attn_heads": 2,
        "causal": True,
    },
    features,
    why={"HOP_UNSUPPORTED": "means of clusters, written in place"},
)
model(
    "segformer-pytorch",
    "segformer_pytorch.Segformer",
    {
        "dims": (8, 16, 16, 32),
        "heads": (1, 2, 2, 4),
        "ff_expansion": (2, 2, 2, 2),
        "num_layers": 1,
        "decoder_dim": 16,
    },
    image(64),
)
model(
    "sinkhorn-transformer",
    "sinkhorn_transformer.SinkhornSelfAttention",
    {"dim": 32, "bucket_size": 4, "max_seq_len": 16, "heads": 4, "n_local_attn_heads": 2},
    features,
    why={"NOT_ATTENTION:gate": "order of the buckets: the largest of softmax"},
)
model(
    "slot_attention",
    "slot_attention.MultiHeadSlotAttention",
    {"num_slots": 4, "dim": 32, "heads": 4, "dim_head": 8, "iters": 2, "hidden_dim": 32},
    features,
    why={"NOT_ATTENTION:gate": SLOTS},
)
model(
    "slot_attention",
    "slot_attention.slot_attention_experimental.WeightedAttention",
    {"dim": 32},
    two,
    why={"NOT_ATTENTION:gate": SLOTS},
)
model(
    "stam-pytorch",
    "stam_pytorch.STAM",
    {
        "dim": 32,
        "image_size": 16,
        "patch_size": 8,
        "num_frames": 3,
        "num_classes": 4,
        "space_depth": 1,
        "space_heads": 4,
        "space_mlp_dim": 32,
        "time_depth": 1,
        "time_heads": 4,
        "time_mlp_dim": 32,
        "space_dim_head": 8,
        "time_dim_head": 8,
    },
    lambda: (noise(2, 3, 3, 16, 16),),
)
model(
    "taylor-series-linear-attention",
    "taylor_series_linear_attention.vit.ViT",
    {"image_size": 16, "patch_size": 8, "num_classes": 4, "dim": 32, "depth": 2, "heads": 4},
    image(16),
)
model(
    "titans-pytorch",
    "titans_pytorch.implicit_mlp_attention.ImplicitMLPAttention",
    {"dim": 32, "mlp_hiddens": (8, 16, 8), "heads": 4},
    features,
    why={"NOT_ATTENTION:channel": "a miss: convolution over heads"},
)
model(
    "titans-pytorch",
    "titans_pytorch.mac_transformer.SegmentedAttention",
    {**HEADS, "segment_len": 4, "num_persist_mem_tokens": 2},
    features,
)
model(
    "toolformer-pytorch",
    "toolformer_pytorch.palm.PaLM",
    LM,
    words,
)
model(
    "transfusion-pytorch",
    "transfusion_pytorch.transfusion.Attention",
    HEADS,
    lambda: (noise(2, 16, 32), {"attn_mask": torch.ones(2, 16, 16).tril().bool()}),
)
model(
    "uniformer-pytorch",
    "uniformer_pytorch.uniformer_pytorch.Transformer",
    DEEP,
    lambda: (noise(1, 32, 2, 4, 4),),
)
model(
    "uniformer-pytorch",
    "uniformer_pytorch.uniformer_pytorch.LocalMHRA",
    {"dim": 32, "heads": 4, "dim_head": 8},
    lambda: (noise(1, 32, 2, 4, 4),),
)
model(
    "video-diffusion-pytorch",
    "video_diffusion_pytorch.video_diffusion_pytorch.Attention",
    HEADS,
    lambda: (noise(2, 4, 16, 32), {"pos_bias": noise(4, 16, 16)}),
)
model(
    "x-clip",
    "x_clip.x_clip.TextTransformer",
    {
        "dim": 32,
        "num_tokens": 64,
        "max_seq_len": 16,
        "dim_head": 8,
        "heads": 4,
        "depth": 2,
        "rotary_pos_emb": True,
    },
    words,
)
model(
    "x-clip",
    "x_clip.x_clip.VisionTransformer",
    {
        "dim": 32,
        "image_size": 16,
        "patch_size": 4,
        "channels": 3,
        "dim_head": 8,
        "heads": 4,
        "depth": 2,
        "patch_dropout": 0.0,
    },
    image(16),
)
model(
    "x-unet",
    "x_unet.x_unet.Attention",
    {"dim": 16, "heads": 2, "dim_head": 8},
    lambda: (noise(1, 16, 1, 8, 8),),
)
model(
    "muse-maskgit-pytorch",
    "muse_maskgit_pytorch.muse_maskgit_pytorch.Attention",
    {**HEADS, "flash": False, "cross_attend": True},
    lambda: (noise(2, 16, 32), {"context": noise(2, 12, 32)}),
)
model(
    "rectified-flow-pytorch",
    "rectified_flow_pytorch.rectified_flow.Attention",
    {"dim": 16, "heads": 2, "dim_head": 8},
    image(8, 16),
)
model(
    "denoising-diffusion-pytorch",
    "denoising_diffusion_pytorch.denoising_diffusion_pytorch.Unet",
    {
        "dim": 16,
        "dim_mults": (1, 2),
        "attn_dim_head": 8,
        "attn_heads": 2,
        "full_attn": (False, True),
    },
    lambda: (noise(1, 3, 16, 16), torch.tensor([5])),
    why={"NOT_ATTENTION:router": LINEAR, "UNKNOWN_SCORE_OP:cat": LINEAR},
)
model(
    "denoising-diffusion-pytorch",
    "denoising_diffusion_pytorch.karras_unet_1d.KarrasUnet1D",
    {
        "seq_len": 16,
        "dim": 16,
        "dim_max": 32,
        "num_downsamples": 1,
        "num_blocks_per_stage": 1,
        "attn_res": (16, 8),
        "attn_dim_head": 8,
    },
    lambda: (noise(1, 4, 16), torch.tensor([0.5])),
)
model(
    "denoising-diffusion-pytorch",
    "denoising_diffusion_pytorch.denoising_diffusion_pytorch_1d.Unet1D",
    {"dim": 16, "dim_mults": (1, 2), "attn_dim_head": 8, "attn_heads": 2},
    lambda: (noise(1, 3, 16), torch.tensor([5])),
    why={"NOT_ATTENTION:router": LINEAR},
)
model(
    "MEGABYTE-pytorch",
    "MEGABYTE_pytorch.MEGABYTE",
    {
        "num_tokens": 64,
        "dim": (32, 16),
        "depth": (1, 1),
        "max_seq_len": (4, 4),
        "dim_head": 8,
        "heads": 2,
    },
    words,
)
model(
    "marge-pytorch",
    "marge_pytorch.marge_pytorch.SelfAttention",
    {"dim": 32, "heads": 4},
    features,
)
model(
    "marge-pytorch",
    "marge_pytorch.marge_pytorch.CrossAttention",
    {"dim": 32, "heads": 4},
    lambda: (noise(2, 16, 32), noise(2, 2, 6, 32), noise(2, 2)),
)
model(
    "nuwa-pytorch",
    "nuwa_pytorch.nuwa_pytorch.Transformer",
    {**DEEP, "causal": True, "cross_attend": True},
    lambda: (noise(2, 16, 32), {"context": noise(2, 12, 32)}),
    mixed=4,  # heads are combined on the map
)
model(
    "CoLT5-attention",
    "colt5_attention.ConditionalRoutedAutoregressiveAttention",
    {
        "dim": 32,
        "num_heavy_tokens_q": 4,
        "num_heavy_tokens_kv": 4,
        "light_dim_head": 8,
        "light_heads": 4,
        "light_window_size": 4,
        "heavy_window_size": 4,
        "heavy_dim_head": 8,
        "heavy_heads": 4,
    },
    features,
)
model(
    "mlp-mixer-pytorch",
    "mlp_mixer_pytorch.MLPMixer",
    {"image_size": 16, "channels": 3, "patch_size": 8, "dim": 32, "depth": 2, "num_classes": 4},
    image(16),
)
model(
    "soft-moe-pytorch",
    "soft_moe_pytorch.SoftMoE",
    {"dim": 32, "seq_len": 16, "num_experts": 4},
    features,
    why={"NOT_ATTENTION:product": "tokens against slots, parameters"},
)
model(
    "point-transformer-pytorch",
    "point_transformer_pytorch.PointTransformerLayer",
    {"dim": 16, "pos_mlp_hidden_dim": 8, "attn_mlp_hidden_mult": 2},
    lambda: (noise(2, 16, 16), noise(2, 16, 3)),
    why={"NOT_ATTENTION:router": "weights per channel, of a perceptron of differences"},
)


def media() -> torch.Tensor:
    out = torch.zeros(2, 16).bool()
    out[:, 0] = out[:, 8] = True
    return out
