"""Image models and super-resolution outside timm: windows, stripes, anchors, channels."""

from __future__ import annotations

from zoo import noise
from zoo.packaged import LINEAR, image, model

CHANNEL = "attention between channels"


SR = "spandrel.architectures"
WINDOWS = {"embed_dim": 16, "depths": (2,), "num_heads": (2,), "window_size": 4, "mlp_ratio": 2.0}

model("spandrel", f"{SR}.SwinIR.__arch.SwinIR.SwinIR", {**WINDOWS, "img_size": 8}, image(8))
model(
    "spandrel",
    f"{SR}.Swin2SR.__arch.Swin2SR.Swin2SR",
    {**WINDOWS, "img_size": 8, "upscale": 1},
    image(8),
)
model(
    "spandrel",
    f"{SR}.HAT.__arch.HAT.HAT",
    {
        **WINDOWS,
        "img_size": 8,
        "squeeze_factor": 4,
        "upsampler": "pixelshuffle",
        "upscale": 2,
        "num_feat": 8,
    },
    image(8),
)
model(
    "spandrel",
    f"{SR}.DRCT.__arch.drct_arch.DRCT",
    {**WINDOWS, "img_size": 8, "gc": 8, "upsampler": "pixelshuffle", "upscale": 2},
    image(8),
)
model(
    "spandrel",
    f"{SR}.RGT.__arch.rgt.RGT",
    {"img_size": 16, "embed_dim": 16, "depth": [2], "num_heads": [2], "split_size": [4, 8]},
    image(16),
)
model(
    "spandrel",
    f"{SR}.GRL.__arch.grl.GRL",
    {
        "img_size": 16,
        "embed_dim": 16,
        "depths": [2],
        "num_heads_window": [2],
        "num_heads_stripe": [2],
        "window_size": 4,
        "stripe_size": [4, 4],
        "mlp_ratio": 2.0,
    },
    image(16),
)
model(
    "spandrel",
    f"{SR}.FDAT.__arch.fdat.FDAT",
    {
        "scale": 2,
        "embed_dim": 16,
        "num_groups": 1,
        "depth_per_group": 2,
        "num_heads": 2,
        "window_size": 4,
        "mid_dim": 8,
        "group_block_pattern": ["spatial", "channel"],
    },
    image(16),
    why={"NOT_ATTENTION:channel": CHANNEL},
)
model(
    "spandrel",
    f"{SR}.RetinexFormer.__arch.retinexformer_arch.RetinexFormer",
    {"n_feat": 16, "stage": 1},
    image(16),
    why={"NOT_ATTENTION:channel": CHANNEL},
)
model(
    "spandrel",
    f"{SR}.Uformer.__arch.Uformer.WindowAttention",
    {"dim": 16, "win_size": (4, 4), "num_heads": 2},
    lambda: (noise(2, 16, 16),),
    "WindowAttention",
)
model(
    "spandrel",
    f"{SR}.KBNet.__arch.kbnet_l.TransAttention",
    {"dim": 16, "num_heads": 2, "bias": True},
    image(8, 16),
    why={"NOT_ATTENTION:channel": CHANNEL},
)
model(
    "spandrel",
    f"{SR}.OmniSR.__arch.OSA.Channel_Attention_grid",
    {"dim": 16, "heads": 2, "window_size": 4},
    image(8, 16),
    why={"NOT_ATTENTION:channel": CHANNEL},
)
model(
    "spandrel",
    f"{SR}.SCUNet.__arch.SCUNet.WMSA",
    {"input_dim": 16, "output_dim": 16, "head_dim": 8, "window_size": 4, "type": "SW"},
    lambda: (noise(1, 8, 8, 16),),
)
model(
    "spandrel",
    f"{SR}.FFTformer.__arch.fftformer_arch.FSAS",
    {"dim": 8, "bias": True},
    image(16, 8),
)
model(
    "spandrel",
    f"{SR}.AuraSR.__arch.aura_sr.LinearTransformer",
    {"dim": 16, "dim_head": 8, "heads": 2},
    image(8, 16),
    why={"NOT_ATTENTION:router": LINEAR},
)
model(
    "spandrel",
    f"{SR}.AuraSR.__arch.aura_sr.Transformer",
    {"dim": 16, "dim_head": 8, "heads": 2, "flash_attn": False},
    image(8, 16),
)
model(
    "segment-anything",
    "segment_anything.modeling.ImageEncoderViT",
    {
        "img_size": 32,
        "patch_size": 4,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
        "out_chans": 8,
        "use_rel_pos": True,
        "window_size": 3,
        "global_attn_indexes": (1,),
    },
    image(),
)
model(
    "segment-anything",
    "segment_anything.modeling.TwoWayTransformer",
    {"depth": 2, "embedding_dim": 32, "num_heads": 4, "mlp_dim": 48},
    lambda: (noise(1, 32, 4, 4), noise(1, 32, 4, 4), noise(1, 5, 32)),
)
model(
    "hiera-transformer",
    "hiera.hiera.Hiera",
    {"input_size": (64, 64), "embed_dim": 8, "num_classes": 4, "stages": (1, 1, 2, 1)},
    image(64),
    why={"NOT_ATTENTION:router": "class probabilities"},
)
model(
    "swin-transformer-pytorch",
    "swin_transformer_pytorch.SwinTransformer",
    {
        "hidden_dim": 16,
        "layers": (2, 2, 2, 2),
        "heads": (2, 2, 2, 2),
        "num_classes": 4,
        "head_dim": 8,
        "window_size": 2,
        "downscaling_factors": (4, 2, 2, 1),
    },
    image(),
)
model(
    "soft-moe",
    "soft_moe.vision_transformer.SoftMoEVisionTransformer",
    {
        "num_experts": 4,
        "moe_layer_index": 1,
        "img_size": 16,
        "patch_size": 4,
        "num_classes": 4,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
    },
    image(16),
    why={
        "NOT_ATTENTION:product": "tokens against slots, parameters",
        "UNKNOWN_SOFTMAX": "tokens against slots, over two axes",
    },
)
model(
    "segmentation_models_pytorch",
    "segmentation_models_pytorch.encoders.mix_transformer.MixVisionTransformerEncoder",
    {
        "out_channels": (3, 0, 8, 16, 16, 32),
        "img_size": 64,
        "patch_size": 4,
        "embed_dims": [8, 16, 16, 32],
        "num_heads": [1, 2, 2, 4],
        "mlp_ratios": [2, 2, 2, 2],
        "qkv_bias": True,
        "depths": [1, 1, 1, 1],
        "sr_ratios": [8, 4, 2, 1],
    },
    image(64),
)
model(
    "dual_attention",
    "dual_attention.vision_models.VisionTransformer",
    {
        "image_shape": (3, 16, 16),
        "patch_size": (4, 4),
        "num_classes": 4,
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 4,
        "dff": 48,
        "dropout_rate": 0.0,
        "activation": "gelu",
        "norm_first": True,
    },
    image(16),
)
model(
    "dual_attention",
    "dual_attention.vision_models.VisionDualAttnTransformer",
    {
        "image_shape": (3, 16, 16),
        "patch_size": (4, 4),
        "num_classes": 4,
        "d_model": 32,
        "n_layers": 1,
        "n_heads_sa": 2,
        "n_heads_ra": 2,
        "dff": 48,
        "dropout_rate": 0.0,
        "activation": "gelu",
        "norm_first": True,
        "symbol_retrieval": "symbolic_attention",
        "symbol_retrieval_kwargs": {"d_model": 32, "n_heads": 4, "n_symbols": 8},
    },
    image(16),
)
model(
    "kornia",
    "kornia.feature.loftr.loftr_module.transformer.LocalFeatureTransformer",
    {"config": {"d_model": 32, "nhead": 4, "layer_names": ["self", "cross"], "attention": "full"}},
    lambda: (noise(1, 16, 32), noise(1, 12, 32)),
)
model(
    "kornia",
    "kornia.models.efficient_vit.nn.ops.LiteMLA",
    {"in_channels": 16, "out_channels": 16, "dim": 8},
    image(8, 16),
)
