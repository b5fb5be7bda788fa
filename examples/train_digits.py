"""Trains the checkpoint of the built-in digits task: `python examples/train_digits.py [OUT]`.

The data are real scanned digits, 797 to train on and 1000 to judge. About 12 minutes on 2 CPU
cores.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from attnpass.tuner.digits import CHECKPOINT, TRAIN, DigitsViT, augment, correct, images

EPOCHS, BATCH = 80, 16


def main() -> None:
    """Train, print the validation accuracy every five epochs, write the weights."""
    torch.manual_seed(0)
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else CHECKPOINT
    x, y = images()
    model = DigitsViT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = EPOCHS * (TRAIN // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1e-3, total_steps=steps, pct_start=0.1
    )
    start = time.time()
    for epoch in range(EPOCHS):
        model.train()
        for rows in torch.randperm(TRAIN)[: TRAIN // BATCH * BATCH].split(BATCH):
            loss = F.cross_entropy(model(augment(x[rows])), y[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        if epoch % 5 == 4:
            model.eval()
            with torch.no_grad():
                hits = correct(
                    torch.cat([model(part) for part in x[TRAIN:].split(100)]), y[TRAIN:]
                )
            print(
                f"epoch {epoch + 1:3d}  loss {loss.item():.3f}  validation {hits.mean():.4f}"
                f"  {time.time() - start:.0f} s",
                flush=True,
            )
    save_file(model.state_dict(), out)


if __name__ == "__main__":
    main()
