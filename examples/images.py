"""Images of 1024 tokens as a task: `attnpass tune examples/images.py:task`.

A vision transformer of 12 layers reads scanned digits at 64 x 64 pixels in patches of 2 x 2, so
most of its time is attention. `python examples/images.py` trains it anew, first at 32 x 32 pixels,
then at full size: about 15 minutes on 2 CPU cores. 797 images train it, the other 1000 judge.

Shapes: B batch, N = 1025 tokens (1024 patches and the class), D = 48 width, H = 3 heads.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attnpass import Task
from attnpass.tuner import digits

CHECKPOINT = Path(__file__).with_suffix(".safetensors")
SIDE, TRAIN, BATCH = 64, digits.TRAIN, 16
STAGES = ((32, 24, 1e-3), (64, 2, 3e-4))
"""Of training: side of the images, epochs, highest learning rate."""


def build(side: int = SIDE) -> digits.DigitsViT:
    """The untrained model for images of one size."""
    return digits.DigitsViT(dim=48, depth=12, heads=3, side=side)


def images(side: int = SIDE) -> tuple[Tensor, Tensor]:
    """All scanned digits ``[1797, 1, side, side]`` in 0..1 and labels, in a fixed random order."""
    x, y = digits.images()
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False), y


def enlarged(weights: dict[str, Tensor], side: int) -> dict[str, Tensor]:
    """The weights for larger images: the positions of patches ``[1, 1 + n * n, D]`` are spread."""
    known = weights["pos_embed"]
    old, new = int((known.shape[1] - 1) ** 0.5), side // 2
    grid = known[:, 1:].transpose(1, 2).reshape(1, -1, old, old)
    grid = F.interpolate(grid, size=(new, new), mode="bilinear", align_corners=False)
    spread = torch.cat([known[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
    return {**weights, "pos_embed": spread}


def train() -> nn.Module:
    """The trained model; prints the loss and the validation accuracy of some epochs."""
    torch.manual_seed(0)
    model, start = build(STAGES[0][0]), time.time()
    for side, epochs, rate in STAGES:
        weights = enlarged(model.state_dict(), side)
        model = build(side)
        model.load_state_dict(weights)
        x, y = images(side)
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
        steps = epochs * (TRAIN // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.2)
        for epoch in range(epochs):
            model.train()
            for rows in torch.randperm(TRAIN)[: TRAIN // BATCH * BATCH].split(BATCH):
                logits = model(digits.augment(x[rows]))
                loss = F.cross_entropy(logits, y[rows], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
            if epoch % 4 == 3 or epoch == epochs - 1:
                print(
                    f"{side} pixels, epoch {epoch + 1}: loss {loss.item():.3f}, validation"
                    f" {accuracy(model, x, y):.4f}, {time.time() - start:.0f} s",
                    flush=True,
                )
    return model


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of the validation images that are read right."""
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(part) for part in x[TRAIN:].split(50)])
    return float(digits.correct(logits, y[TRAIN:]).mean())


def task() -> Task:
    """The task: 1000 validation items, 64 calibration items, batch 8 as served."""
    model = build()
    model.load_state_dict(load_file(CHECKPOINT))
    x, y = images()
    held, labels = x[TRAIN:], y[TRAIN:]
    return Task(
        name="images",
        model=model.eval(),
        example=(held[:8],),
        calibration=[(part,) for part in x[:64].split(8)],
        validation=[
            ((part,), label) for part, label in zip(held.split(25), labels.split(25), strict=True)
        ],
        score=digits.correct,
        recovery=digits.Augmented(x[:TRAIN], batch=8),
    )


if __name__ == "__main__":
    save_file(train().state_dict(), Path(sys.argv[1]) if len(sys.argv) > 1 else CHECKPOINT)
