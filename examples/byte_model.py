"""A causal byte-level language model as a task: `attnpass tune examples/byte_model.py:task`.

A transformer of 6 layers reads 1024 bytes of Python's own library, source and documentation, and
predicts each next one. `python examples/byte_model.py` trains it: about 20 minutes on one CPU
core. Files that it was never trained on judge it, in bits per byte (of spans of 256 bytes); the
score is their negative, so that higher is better: a drop of 0.016 is 0.016 bits per byte.

Shapes: B sequences, T = 1024 bytes, D = 128 width, H = 4 heads.
"""

from __future__ import annotations

import hashlib
import math
import sys
import sysconfig
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attnpass import Task

CHECKPOINT = Path(__file__).with_suffix(".safetensors")
STDLIB = Path(sysconfig.get_paths()["stdlib"])
SKIPPED = {"site-packages", "test", "tests", "idlelib", "idle_test", "lib2to3", "encodings"}
BYTES, SPAN, BATCH = 1024, 256, 4
"""Bytes of a sequence, of a span that is scored, and sequences of a batch as served."""
JUDGED = 900
"""Sequences that judge."""
STAGES = ((1600, 16, 256, 2e-3), (500, 4, BYTES, 5e-4))
"""Of training: steps, sequences of a step, their bytes, highest learning rate."""


class Block(nn.Module):
    """One pre-norm causal block over ``[B, T, D]``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, D]``."""
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class ByteModel(nn.Module):
    """Predicts the next byte at every place."""

    def __init__(self, width: int = 128, depth: int = 6, heads: int = 4) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, width), nn.Embedding(BYTES, width)
        for table in (self.bytes, self.places):
            nn.init.normal_(table.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)

    def forward(self, text: Tensor) -> Tensor:
        """Logits ``[B, T, 256]`` of the byte after each of ``text [B, T]``."""
        x = self.bytes(text) + self.places.weight[: text.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


@cache
def texts() -> tuple[Tensor, Tensor]:
    """The bytes to train on and those that judge; a file of Python's library is in one of them."""
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for file in sorted(STDLIB.rglob("*.py")):
        name = file.relative_to(STDLIB)
        if not SKIPPED & set(name.parts):
            digest = hashlib.sha256(str(name).encode()).digest()
            parts[digest[0] < 40].append(file.read_bytes())
    train, judge = (torch.from_numpy(np.frombuffer(b"\n".join(x), np.uint8).copy()) for x in parts)
    return train, judge


class Random(Sequence[tuple[Tensor]]):
    """Batches of the bytes to train on, ``[B, T]``, from random places at every access."""

    def __init__(self, count: int, sequences: int = BATCH, length: int = BYTES) -> None:
        self.count, self.sequences, self.length = count, sequences, length

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: Any) -> Any:
        data = texts()[0]
        starts = torch.randint(len(data) - self.length, (self.sequences,)).tolist()
        return (torch.stack([data[s : s + self.length] for s in starts]).long(),)


def bits(logits: Tensor, following: Tensor) -> Tensor:
    """Minus the bits per byte ``[n]`` of the spans ``following [n, 256]``.

    In this order ``logits [B, T, 256]`` predict them.
    """
    flat = F.cross_entropy(logits.flatten(0, 1).float(), following.flatten(), reduction="none")
    return -flat.view(following.shape).mean(1) / math.log(2)


def train() -> nn.Module:
    """The trained model; prints bits per byte of training, and of some sequences that judge."""
    torch.manual_seed(0)
    model, start = ByteModel(), time.time()
    for steps, sequences, length, rate in STAGES:
        data = Random(steps, sequences, length + 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
        if length == BYTES:  # places that were not trained yet start as those that were
            with torch.no_grad():
                known = STAGES[0][2]
                for first in range(known, BYTES, known):
                    model.places.weight[first : first + known] = model.places.weight[:known]
        mean = math.log(256)
        for step in range(steps):
            (text,) = data[step]
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(text[:, :-1])
            loss = F.cross_entropy(logits.float().flatten(0, 1), text[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            mean += 0.02 * (loss.item() - mean)
            if step % 100 == 99 or step == steps - 1:
                print(
                    f"{length} bytes, step {step + 1}: {mean / math.log(2):.3f} bits per byte,"
                    f" {time.time() - start:.0f} s",
                    flush=True,
                )
        print(f"judged: {judged_bits(model):.3f} bits per byte", flush=True)
    return model


def validation() -> list[tuple[tuple[Tensor], Tensor]]:
    """Sequences ``[B, T]`` that judge, with the spans ``[4 B, 256]`` that follow their bytes."""
    data = texts()[1]
    starts = torch.linspace(0, len(data) - BYTES - 1, JUDGED).long()
    order = torch.randperm(JUDGED, generator=torch.Generator().manual_seed(0))
    cut = torch.stack([data[s : s + BYTES + 1] for s in starts[order].tolist()]).long()
    return [((x[:, :-1],), x[:, 1:].reshape(-1, SPAN)) for x in cut.split(10)]


def judged_bits(model: nn.Module, batches: int = 10) -> float:
    """Bits per byte on the first batches that judge."""
    with torch.no_grad():
        found = [bits(model(*inputs), target) for inputs, target in validation()[:batches]]
    return -float(torch.cat(found).mean())


def task() -> Task:
    """The task: prefill of 4 sequences of 1024 bytes as served."""
    model = ByteModel()
    model.load_state_dict(load_file(CHECKPOINT))
    judged = validation()
    torch.manual_seed(0)
    lessons = Random(8)
    return Task(
        name="byte_model",
        model=model.eval(),
        example=(judged[0][0][0][:BATCH],),
        calibration=[lessons[i] for i in range(8)],
        validation=judged,
        score=bits,
        metric="-bits/byte",
        recovery=Random(10_000),
    )


if __name__ == "__main__":
    weights = {name: value.half() for name, value in train().state_dict().items()}
    save_file(weights, Path(sys.argv[1]) if len(sys.argv) > 1 else CHECKPOINT)
