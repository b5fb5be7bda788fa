"""timm, more of it: variants neither in the corpus nor in the set kept aside."""

from __future__ import annotations

from typing import Any

from zoo import EAGER, Built, add, noise
from zoo.timm_specs import CHANNEL, POOLED, SMALL, model

VIT = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "num_heads": 4, "depth": 2}
NAFLEX = {"embed_dim": 32, "num_heads": 4, "depth": 2}
RELPOS = {**VIT, "rel_pos_type": "bias"}
MAXVIT: dict[str, Any] = {"img_size": 64, "depths": (1, 1), "embed_dim": (16, 32)}

# plain vision transformers: norms, tokens, pooling and feed-forward differ
for name in (
    "vit_base_patch16_224",
    "vit_base_patch16_siglip_256",
    "vit_base_patch16_siglip_gap_224",
    "vit_base_patch16_reg4_gap_256",
    "vit_base_patch16_plus_clip_240",
    "vit_base_patch16_rpn_224",
    "vit_base_patch16_radio_v3",
    "vit_so150m_patch16_reg4_map_256",
    "vit_so150m2_patch16_reg1_gap_256",
    "vit_betwixt_patch16_gap_256",
    "vit_giantopt_patch16_siglip_256",
    "vit_intern300m_patch14_448",
    "eva_large_patch14_196",
    "flexivit_base",
    "beit3_base_patch16_224",
    "aimv2_large_patch14_224",
    "deit3_medium_patch16_224",
    "test_vit2",
    "test_vit3",
    "test_vit4",
):
    model(name, 32, VIT)
model("vit_small_patch16_18x2_224", 32, VIT)  # parallel blocks
model("vit_wee_patch16_reg1_gap_256", 32, VIT)
model("vit_dpwee_patch16_reg1_gap_256", 32, VIT)  # differential attention
model("vit_dlittle_patch16_reg1_gap_256", 32, VIT)

# rotary positions
for name in (
    "eva02_tiny_patch14_336",
    "eva02_base_patch14_448",
    "eva02_large_patch14_clip_224",
    "eva_giant_patch14_336",
    "vit_base_patch16_rope_224",
    "vit_base_patch16_rope_reg1_gap_256",
    "vit_small_patch16_rope_mixed_224",
    "vit_small_patch16_rope_ape_224",
    "vit_small_plus_patch16_dinov3_qkvb",
    "vit_huge_plus_patch16_dinov3",
    "vit_pe_core_small_patch16_384",
    "vit_pe_spatial_small_patch16_512",
    "vit_giant_patch16_lingbot",
):
    model(name, 32, VIT)
model("vit_giant_patch16_sapiens2", 32, {**VIT, "num_kv_heads": (4, 2)})
model("beitv2_base_patch16_224", 32, SMALL)
model("qwen3_vit_88m", 64, {"img_size": 64, "embed_dim": 32, "num_heads": 4, "depth": 2})
model("qwen3_vit_88m_merge", 64, {"img_size": 64, "embed_dim": 32, "num_heads": 4, "depth": 2})
model("gemma4_vit_167m_enc", 96, {"img_size": 96, "embed_dim": 32, "num_heads": 4, "depth": 2})
model("deepseek_vit_412m_enc", 56, {"img_size": 56, "embed_dim": 32, "num_heads": 4, "depth": 2})

# any resolution, biases of relative positions
model("naflexvit_so150m2_patch16_reg1_map", 32, NAFLEX)
model("naflexvit_base_patch16_siglip", 32, NAFLEX)
model("naflexvit_base_patch16_par_gap", 32, NAFLEX)
model("naflexvit_huge_patch16_radio_v3", 32, NAFLEX)
model("vit_relpos_base_patch16_clsgap_224", 32, VIT)
model("vit_relpos_medium_patch16_cls_224", 32, VIT)
model("test_vit_relpos", 32, VIT)
model(
    "samvit_huge_patch16",
    64,
    {**VIT, "img_size": 64, "window_size": 2, "global_attn_indexes": [1]},
)

# convolutions before, between or inside
model("vit_small_resnet26d_224", 64, {"img_size": 64, "embed_dim": 32, "num_heads": 4, "depth": 2})
model("vit_base_r50_s16_384", 64, {"img_size": 64, "embed_dim": 32, "num_heads": 4, "depth": 2})
model("vitamin_small_224", 64, {"img_size": 64})
model("resnet50x4_clip", 64)
model("mobilenetv4_hybrid_large", 64)
model("mobilenetv5_300m_enc", 64, {"channel_multiplier": 0.25})
model("nextvit_base", 64, {"depths": (1, 1, 5, 2)})
model("iformer_t", 64, {"depths": (1, 1, 3, 3), "attn_groups": (0, 0, 1, 1)})
model("lowformer_b0", 64)
model("cpubone_b0_bfrobust", 64)
model("caformer_s36", 64)
model("tiny_vit_21m_224", 224, {"depths": [1, 1, 2, 1]})
model("coatnet_nano_cc_224", 64, {"img_size": 64})
model("coatnet_1_224", 64, {"img_size": 64})
model("coatnext_nano_rw_224", 64, {"img_size": 64})
model("maxvit_rmlp_pico_rw_256", 64, {"img_size": 64})
model("test_maxvit", 64, {"img_size": 64})
model("test_coatnet", 64, {"img_size": 64})
model("botnet50ts_256", 64, {"img_size": 64}, impls=EAGER)
model("halonet50ts", 256, impls=EAGER)
model("levit_conv_128", 224, impls=EAGER)
model("levit_512d", 224, impls=EAGER)
model("shvit_s3", 64, impls=EAGER)
model("fastvit_mci2", 64)
model("efficientformerv2_s1", 224, impls=EAGER, mixed=4)
model("efficientvit_m1", 224, impls=EAGER)

# stages and windows
model("hieradet_small", 64)
model("sam2_hiera_tiny", 64)
model("hiera_small_abswin_256", 64, {"img_size": 64, "stages": (1, 1, 2, 1)})
model("twins_pcpvt_large", 64, {"img_size": 64, "depths": [1, 1, 1, 1]})
model("twins_svt_base", 64, {"img_size": 64, "depths": [2, 2, 2, 2]})
model("pvt_v2_b2_li", 64, {"depths": (1, 1, 1, 1)})
model("swin_s3_base_224", 224, {"depths": (1, 2, 1, 1)})
model("swinv2_cr_small_ns_224", 64, {"img_size": 64, "depths": (1, 2, 1, 1)}, impls=EAGER)
model(
    "swinv2_base_window12_192",
    96,
    {"img_size": 96, "depths": (2,), "embed_dim": 16, "num_heads": (2,)},
    impls=EAGER,
)
model("nest_tiny_jx", 224)
model("pit_s_distilled_224", 224)
model("tnt_s_patch16_224", 64, {"img_size": 64, "depth": 2}, impls=EAGER)
model("crossvit_9_dagger_240", 240, impls=EAGER)
model("cait_xs24_384", 32, {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 4}, mixed=2)

# over channels, linear, and what is none
model("davit_small", 64, {"depths": (1, 1, 1, 1)}, why=CHANNEL)
model("xcit_tiny_12_p8_224", 32, {"img_size": 32, "depth": 2}, why=CHANNEL)
model("edgenext_x_small", 64, impls=EAGER, why=CHANNEL)
model(
    "coat_lite_tiny", 64, {"img_size": 64, "serial_depths": [1, 1, 1, 1]}, impls=EAGER, why=POOLED
)
model(
    "volo_d3_224",
    224,
    impls=EAGER,
    why={"UNKNOWN_SCORE_OP:avg_pool2d": "outlook attention: softmax of a projection, no keys"},
)
model(
    "convit_small",
    32,
    {"img_size": 32, "embed_dim": 32, "num_heads": 4, "depth": 2, "local_up_to_layer": 1},
    impls=EAGER,
    why={"NOT_ATTENTION:router": "positional weights: softmax of a projection of distances"},
)
model(
    "mobilevitv2_075",
    64,
    impls=EAGER,
    why={"NOT_ATTENTION:router": "linear attention: context scores are softmax of a projection"},
)
model("swiftformer_s", 224, impls=EAGER)
model("efficientvit_b2", 64, impls=EAGER)
model("efficientvit_l1", 64, impls=EAGER)
model(
    "efficientvim_m1",
    64,
    impls=EAGER,
    why={
        "NOT_ATTENTION:router": "state mixing: softmax of a projection",
        "NOT_ATTENTION:pooling": "weights of the heads: softmax of a parameter",
    },
)
model("bat_resnext26ts", 256, impls=EAGER)
model(
    "gcresnet50t",
    64,
    impls=EAGER,
    why={"NOT_ATTENTION:router": "global context: softmax of a convolution over all places"},
)
model("resnest50d_1s4x24d", 64, impls=EAGER)
model(
    "skresnet50",
    64,
    impls=EAGER,
    why={"NOT_ATTENTION:router": "selective kernels: softmax over branches"},
)
model("poolformer_s24", 64, impls=EAGER)
model("gmlp_s16_224", 32, {"img_size": 32}, impls=EAGER)
model("resmlp_12_224", 32, {"img_size": 32}, impls=EAGER)
model("mambaout_femto", 64, impls=EAGER)
model("efficientnet_b0", 64, impls=EAGER)
model("repvit_m1", 64, impls=EAGER)


def pooled(impl: str) -> Built:
    from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg

    sizes = MultiScaleVitCfg(depths=(1, 1, 1, 1), embed_dim=16, num_heads=2, use_cls_token=True)
    made = MultiScaleVit(sizes, img_size=(64, 64), num_classes=4)
    return made, (noise(2, 3, 64, 64),), {}


add("timm", "mvitv2_large_cls", pooled, EAGER)
