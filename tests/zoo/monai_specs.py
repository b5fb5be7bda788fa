"""monai: medical images in three dimensions."""

from __future__ import annotations

from zoo import EAGER, Built, add, noise


def vit(impl: str) -> Built:
    from monai.networks.nets import ViT

    made = ViT(1, (16, 16, 16), (8, 8, 8), hidden_size=32, mlp_dim=48, num_layers=2, num_heads=4)
    return made, (noise(2, 1, 16, 16, 16),), {}


def unetr(impl: str) -> Built:
    from monai.networks.nets import UNETR

    made = UNETR(
        1, 2, (32, 32), feature_size=8, hidden_size=32, mlp_dim=48, num_heads=4, spatial_dims=2
    )
    return made, (noise(1, 1, 32, 32),), {}


def swin(impl: str) -> Built:
    from monai.networks.nets.swin_unetr import SwinTransformer

    made = SwinTransformer(1, 12, (4, 4), (2, 2), (2, 2, 2, 2), (2, 2, 2, 2), spatial_dims=2)
    return made, (noise(1, 1, 64, 64),), {}


add("monai", "vit", vit, EAGER, sample=True)
add("monai", "unetr", unetr, EAGER)
add("monai", "swin", swin, EAGER)
