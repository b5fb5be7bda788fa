"""torchvision's transformers."""

from __future__ import annotations

from zoo import EAGER, SDPA, Built, add, noise


def vit(impl: str) -> Built:
    from torchvision.models import VisionTransformer

    made = VisionTransformer(32, 8, 2, 4, 32, 48, num_classes=4)
    return made, (noise(2, 3, 32, 32),), {}


def swin(kind: str):
    def build(impl: str) -> Built:
        from torchvision.models import swin_transformer as library

        block = {"v1": library.SwinTransformerBlock, "v2": library.SwinTransformerBlockV2}[kind]
        merge = {"v1": library.PatchMerging, "v2": library.PatchMergingV2}[kind]
        made = library.SwinTransformer(
            [4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=4, block=block, downsample_layer=merge
        )
        return made, (noise(2, 3, 32, 32),), {}

    return build


def maxvit(impl: str) -> Built:
    from torchvision.models import MaxVit

    made = MaxVit((56, 56), 8, 7, [8, 16], [1, 1], 8, 0.0, num_classes=4)
    return made, (noise(2, 3, 56, 56),), {}


add("torchvision", "vit", vit, SDPA, sample=True)
add("torchvision", "swin", swin("v1"), EAGER, sample=True)
add("torchvision", "swin_v2", swin("v2"), EAGER)
add("torchvision", "maxvit", maxvit, EAGER)
