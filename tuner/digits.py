"""The built-in task: real scanned digits (scikit-learn), a small ViT, its shipped checkpoint.

Shapes: B batch, N = 257 tokens (256 patches and the class) at side 32, D = 64 width, H = 4 heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnpass.errors import MissingDependencyError, TaskError
from attnpass.task import Task

CHECKPOINT = Path(__file__).parent / "digits.safetensors"
TRAIN = 797
"""Images 0..796 of the seeded permutation train the checkpoint; the other 1000 are validation."""


class Attention(nn.Module):
    """Multi-head self attention over ``[B, N, D]`` through ``scaled_dot_product_attention``."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed tokens ``[B, N, D]``."""
        b, n, d = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, H, N, d]
        out = F.scaled_dot_product_attention(q, k, v)
        mixed: Tensor = self.proj(out.transpose(1, 2).reshape(b, n, d))
        return mixed


class Block(nn.Module):
    """One pre-norm transformer block over ``[B, N, D]``."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output ``[B, N, D]``."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class DigitsViT(nn.Module):
    """A small vision transformer over ``[B, 1, side, side]`` images, logits ``[B, 10]``."""

    def __init__(self, dim: int = 64, depth: int = 6, heads: int = 4, side: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.GELU())
        self.patch_embed = nn.Conv2d(32, dim, kernel_size=3, stride=2, padding=1)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, (side // 2) ** 2 + 1, dim) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the class logits ``[B, 10]`` of images in 0..1."""
        x = self.patch_embed(self.stem(images)).flatten(2).transpose(1, 2)  # [B, N - 1, D]
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits


def images() -> tuple[Tensor, Tensor]:
    """All scanned digits ``[1797, 1, 32, 32]`` in 0..1 and labels, in a fixed random order.

    Raises:
        MissingDependencyError: scikit-learn, which carries the scans, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependencyError(
            "the digits task needs scikit-learn (it carries the scans), which is not installed;"
            " pip install 'attnpass[demo]'"
        ) from error
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(data.images).float()[order].unsqueeze(1) / 16
    x = F.interpolate(x, size=(32, 32), mode="bilinear", align_corners=False)
    return x, torch.from_numpy(data.target)[order].long()


def augment(x: Tensor) -> Tensor:
    """``[B, 1, side, side]`` images, each turned, sheared, scaled and shifted a little."""
    b = x.shape[0]
    eye = torch.eye(2).expand(b, 2, 2)
    angle = (torch.rand(b) - 0.5) * 0.5
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(b, 2, 2)
    bend = eye + (torch.rand(b, 2, 2) - 0.5) * 0.3
    shift = (torch.rand(b, 2, 1) - 0.5) * 0.35
    grid = F.affine_grid(torch.cat([turn @ bend, shift], 2), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, align_corners=False)
    return x * (0.8 + 0.4 * torch.rand(b, 1, 1, 1))


class Augmented(Sequence[tuple[Tensor]]):
    """Batches of images, augmented anew at every access."""

    def __init__(self, images: Tensor, batch: int = 16) -> None:
        self.batches = images.split(batch)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i: Any) -> Any:
        return (augment(self.batches[i]),)


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Per item 1.0 where the arg-max of ``logits [B, 10]`` is the label, else 0.0."""
    return (logits.argmax(-1) == labels).float()


def task() -> Task:
    """The digits task: 1000 validation items, 128 calibration items, batch 16 as served.

    Raises:
        TaskError: the shipped checkpoint is missing.
        MissingDependencyError: scikit-learn is not installed.
    """
    from safetensors.torch import load_file

    if not CHECKPOINT.exists():
        raise TaskError(
            f"expected the digits checkpoint at {CHECKPOINT}, found none;"
            " run examples/train_digits.py to make it"
        )
    model = DigitsViT()
    model.load_state_dict(load_file(CHECKPOINT))
    x, y = images()
    train, held = x[:TRAIN], x[TRAIN:]
    return Task(
        name="digits",
        model=model.eval(),
        example=(held[:16],),
        calibration=[(part,) for part in train[:128].split(32)],
        validation=[
            ((part,), labels)
            for part, labels in zip(held.split(50), y[TRAIN:].split(50), strict=True)
        ],
        score=correct,
        recovery=Augmented(train),
    )
