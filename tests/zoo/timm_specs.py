"""timm: vision transformers with fused attention on and off, hybrids, channel attention."""

from __future__ import annotations

from typing import Any

from zoo import BOTH, EAGER, Built, add, noise

CHANNEL = {
    "NOT_ATTENTION:channel": "channel attention: the product runs over tokens and softmax over "
    "features"
}
POOLED = {"NOT_ATTENTION:router": "factorised attention: softmax of the keys alone"}


def model(name: str, size: int, sizes: dict[str, Any] | None = None, **more: Any) -> None:
    def build(impl: str) -> Built:
        import timm
        from timm.layers import set_fused_attn

        set_fused_attn(impl == "sdpa", experimental=impl == "sdpa")
        try:
            made = timm.create_model(name, pretrained=False, num_classes=4, **(sizes or {}))
        finally:
            set_fused_attn(True)
        return made, (noise(2, 3, size, size),), {}

    more.setdefault("impls", BOTH)
    add("timm", name, build, **more)


SMALL = {"img_size": 32, "embed_dim": 32, "num_heads": 4, "depth": 2}

model("vit_small_patch14_dinov2", 56, {**SMALL, "img_size": 56}, sample=True)
model("vit_srelpos_small_patch16_224", 32, SMALL)
model("deit_tiny_distilled_patch16_224", 32, SMALL, sample=True)
model("vit_small_patch16_dinov3", 32, SMALL)
model("beit_base_patch16_224", 32, SMALL, sample=True)
model("naflexvit_base_patch16_gap", 32, {"embed_dim": 32, "num_heads": 4, "depth": 2})
model(
    "samvit_base_patch16",
    64,
    {**SMALL, "img_size": 64, "depth": 3, "window_size": 2, "global_attn_indexes": [2]},
    sample=True,
)
model("cait_xxs24_224", 32, {"img_size": 32, "depth": 2, "embed_dim": 32}, mixed=2, sample=True)
model("xcit_nano_12_p16_224", 32, {"img_size": 32, "depth": 2}, why=CHANNEL, sample=True)
model("crossvit_tiny_240", 240, impls=EAGER)
model("pit_ti_224", 224)
model("twins_svt_small", 224, {"depths": [1, 1, 1, 1]})
model(
    "volo_d1_224",
    224,
    {},
    why={"UNKNOWN_SCORE_OP:avg_pool2d": "outlook attention: softmax of a projection, no keys"},
)
model("coat_tiny", 224, {"serial_depths": [1, 1, 1, 1]}, impls=EAGER, why=POOLED)
model("nest_tiny", 224)
model("gcvit_xxtiny", 224, impls=EAGER)
model("davit_tiny", 224, {"depths": (1, 1, 1, 1)}, why=CHANNEL)
model("hiera_tiny_224", 224, {"stages": (1, 1, 2, 1)})
model("mvitv2_tiny", 224, impls=EAGER)
model("efficientformerv2_s0", 224, impls=EAGER, mixed=4)
model("efficientvit_m0", 224, impls=EAGER)
model("fastvit_sa12", 224, impls=EAGER)
model("coatnet_rmlp_nano_rw_224", 224, impls=EAGER)
model(
    "swin_tiny_patch4_window7_224",
    56,
    {"img_size": 56, "depths": (1, 2), "embed_dim": 16, "num_heads": (2, 4)},
    sample=True,
)
model(
    "swinv2_tiny_window8_256",
    64,
    {"img_size": 64, "depths": (1, 2), "embed_dim": 16, "num_heads": (2, 4)},
    impls=EAGER,
)
model("levit_128s", 224, impls=EAGER)
model("mobilevit_xxs", 256, impls=EAGER)
model("botnet26t_256", 256, impls=EAGER)
model("halonet26t", 256, impls=EAGER)
model("shvit_s1", 224, impls=EAGER)
model(
    "convit_tiny",
    32,
    {"img_size": 32, "embed_dim": 32, "num_heads": 4, "depth": 2, "local_up_to_layer": 1},
    impls=EAGER,
    why={
        "NOT_ATTENTION:router": "positional weights: softmax of a projection of distances",
        "NOT_ATTENTION:gate": "two softmaxes gated and normalised again: no softmax attention",
    },
)
model("edgenext_xx_small", 64, impls=EAGER, why=CHANNEL)
model("convnext_atto", 64, impls=EAGER)
model("focalnet_tiny_srf", 224, impls=EAGER)
