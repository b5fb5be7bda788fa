"""diffusers: U-Nets and diffusion transformers, attention processors old and new."""

from __future__ import annotations

import torch

from zoo import BOTH, Built, add, noise


def processed(model: torch.nn.Module, impl: str) -> torch.nn.Module:
    """The same model with the plain or the fused attention processor."""
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    chosen = AttnProcessor() if impl == "eager" else AttnProcessor2_0()
    for module in model.modules():
        if hasattr(module, "set_processor"):
            module.set_processor(chosen)
    return model


def unet(impl: str) -> Built:
    from diffusers import UNet2DConditionModel

    made = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    return (
        processed(made, impl),
        (noise(2, 4, 8, 8), torch.tensor(3), noise(2, 5, 24)),
        {"return_dict": False},
    )


def dit(impl: str) -> Built:
    from diffusers import DiTTransformer2DModel

    made = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        num_layers=2,
        sample_size=8,
        norm_num_groups=4,
        num_embeds_ada_norm=10,
    )
    return (
        processed(made, impl),
        (noise(2, 4, 8, 8), torch.tensor([3, 4]), torch.tensor([1, 2])),
        {"return_dict": False},
    )


def prior(impl: str) -> Built:
    from diffusers import PriorTransformer

    made = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        embedding_dim=16,
        num_embeddings=5,
        additional_embeddings=4,
    )
    return (
        processed(made, impl),
        (noise(2, 16), torch.tensor(3), noise(2, 16), noise(2, 5, 16)),
        {"return_dict": False},
    )


def vae(impl: str) -> Built:
    from diffusers import AutoencoderKL

    made = AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
    )
    return processed(made, impl), (noise(2, 3, 16, 16),), {"return_dict": False}


add("diffusers", "unet-condition", unet, BOTH, sample=True)
add("diffusers", "dit", dit, BOTH)
add("diffusers", "prior", prior, BOTH)
add("diffusers", "autoencoder-kl", vae, BOTH)
