"""vit-pytorch: research vision transformers, einsum and rearrange throughout."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from zoo import EAGER, Built, add, noise

VIT = {
    "image_size": 32,
    "patch_size": 8,
    "num_classes": 4,
    "dim": 32,
    "depth": 2,
    "heads": 4,
    "mlp_dim": 48,
}


def model(
    name: str, module: str, cls: str, options: dict[str, Any], size: int = 32, **more: Any
) -> None:
    def build(impl: str) -> Built:
        made = getattr(import_module(f"vit_pytorch.{module}"), cls)(**options)
        return made, (noise(2, 3, size, size),), {}

    add("vit_pytorch", name, build, EAGER, **more)


model("vit", "vit", "ViT", VIT, sample=True)
model("simple_vit", "simple_vit", "SimpleViT", VIT)
model("simple_vit_with_qk_norm", "simple_vit_with_qk_norm", "SimpleViT", VIT)
model("vit_for_small_dataset", "vit_for_small_dataset", "ViT", VIT, sample=True)
model("deepvit", "deepvit", "DeepViT", VIT, sample=True)
model("cait", "cait", "CaiT", {**VIT, "cls_depth": 1, "dim_head": 8}, mixed=3)
model(
    "cct",
    "cct",
    "CCT",
    {
        "img_size": 32,
        "embedding_dim": 32,
        "n_conv_layers": 1,
        "num_layers": 2,
        "num_heads": 4,
        "mlp_ratio": 2.0,
        "num_classes": 4,
    },
    why={"NOT_ATTENTION:router": "sequence pooling: softmax of one projection over tokens"},
)
model(
    "cross_vit",
    "cross_vit",
    "CrossViT",
    {
        "image_size": 32,
        "num_classes": 4,
        "depth": 1,
        "sm_dim": 16,
        "sm_patch_size": 8,
        "sm_enc_depth": 1,
        "sm_enc_heads": 2,
        "sm_enc_mlp_dim": 32,
        "sm_enc_dim_head": 8,
        "lg_dim": 24,
        "lg_patch_size": 16,
        "lg_enc_depth": 1,
        "lg_enc_heads": 2,
        "lg_enc_mlp_dim": 32,
        "lg_enc_dim_head": 8,
        "cross_attn_depth": 1,
        "cross_attn_heads": 2,
        "cross_attn_dim_head": 8,
    },
)
model(
    "levit",
    "levit",
    "LeViT",
    {
        "image_size": 64,
        "num_classes": 4,
        "dim": (16, 24),
        "depth": 1,
        "heads": 2,
        "stages": 2,
        "mlp_mult": 2,
        "dim_key": 8,
        "dim_value": 8,
    },
    64,
)
model(
    "pit",
    "pit",
    "PiT",
    {
        "image_size": 32,
        "patch_size": 8,
        "dim": 32,
        "num_classes": 4,
        "depth": (1, 1),
        "heads": 4,
        "mlp_dim": 48,
    },
)
model("parallel_vit", "parallel_vit", "ViT", {**VIT, "num_parallel_branches": 2})
model(
    "max_vit",
    "max_vit",
    "MaxViT",
    {
        "num_classes": 4,
        "dim": 16,
        "depth": (1,),
        "window_size": 4,
        "dim_head": 8,
        "dim_conv_stem": 8,
    },
    16,
)
model(
    "xcit",
    "xcit",
    "XCiT",
    {**VIT, "cls_depth": 1, "local_patch_kernel_size": 3},
    why={
        "NOT_ATTENTION:channel": "channel attention: the product runs over tokens",
        "AXIS_NOT_TOKEN": "channel attention: softmax runs over features",
    },
)
model(
    "twins_svt",
    "twins_svt",
    "TwinsSVT",
    {
        "num_classes": 4,
        "s1_emb_dim": 8,
        "s1_patch_size": 4,
        "s1_local_patch_size": 4,
        "s1_global_k": 4,
        "s1_depth": 1,
        "s2_emb_dim": 16,
        "s2_patch_size": 2,
        "s2_local_patch_size": 4,
        "s2_global_k": 4,
        "s2_depth": 1,
        "s3_emb_dim": 16,
        "s3_patch_size": 1,
        "s3_local_patch_size": 4,
        "s3_global_k": 4,
        "s3_depth": 1,
        "s4_emb_dim": 16,
        "s4_patch_size": 1,
        "s4_local_patch_size": 4,
        "s4_global_k": 4,
        "s4_depth": 1,
    },
    64,
)
model(
    "mobile_vit",
    "mobile_vit",
    "MobileViT",
    {
        "image_size": (64, 64),
        "dims": [16, 24, 32],
        "num_classes": 4,
        "channels": [8, 8, 16, 16, 16, 16, 24, 24, 32, 32, 48],
        "depths": (1, 1, 1),
    },
    64,
)
model("learnable_memory_vit", "learnable_memory_vit", "ViT", VIT)
