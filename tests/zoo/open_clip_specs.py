"""open_clip: image and text towers."""

from __future__ import annotations

from zoo import SDPA, Built, add, noise, tokens

VISION = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 8, "layers": 2}
TEXT = {"context_length": 12, "vocab_size": 64, "width": 32, "heads": 4, "layers": 2}


def clip(impl: str) -> Built:
    from open_clip.model import CLIP

    return CLIP(16, VISION, TEXT), (noise(2, 3, 32, 32), tokens(2, 12)), {}


def pooled(impl: str) -> Built:
    from open_clip.model import CLIP

    vision = {**VISION, "attentional_pool": True, "attn_pooler_queries": 6, "attn_pooler_heads": 4}
    return CLIP(32, vision, TEXT), (noise(2, 3, 32, 32), tokens(2, 12)), {}


add("open_clip", "clip", clip, SDPA, sample=True)
add("open_clip", "clip-attentional-pool", pooled, SDPA)
