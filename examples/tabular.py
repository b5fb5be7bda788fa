"""In-context classification of tables as a task: `attnpass tune examples/tabular.py:task`.

A small prior-fitted transformer (2112.10510, 2207.01848) reads a table of 1024 labelled rows and
classifies 128 others in one pass, without training on the table: every row is a token, and every
row attends to the labelled ones. `python examples/tabular.py` trains it on synthetic tables: about
17 minutes on one CPU core. scikit-learn's real data sets judge it: of a set with fewer rows some
are repeated in the context, and the digits are asked for twice (which digit; is it odd).

Shapes: B tables, C labelled rows, N = C and the rows to classify, F = 16 features, D = 64 width.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attnpass import Task

CHECKPOINT = Path(__file__).with_suffix(".safetensors")
FEATURES, CLASSES = 16, 10
CONTEXT, ASKED = 1024, 128
"""Labelled rows of a table as served, and rows to classify."""
STAGES = ((5000, 16, 192, 1e-3), (1000, 4, CONTEXT, 3e-4))
"""Of training: steps, tables of a step, labelled rows at most, highest learning rate."""


class Block(nn.Module):
    """One pre-norm block over ``[B, N, D]``, in which all rows attend to the first C."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in "qkvo")
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, labelled: int) -> Tensor:
        """``[B, N, D]``; ``labelled`` is C."""
        h = self.norm1(x)
        known = h[:, :labelled]
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (self.query(h), self.key(known), self.value(known))
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PriorFitted(nn.Module):
    """Classifies the rows of a table that have no label."""

    def __init__(self, width: int = 64, depth: int = 6, heads: int = 4) -> None:
        super().__init__()
        self.rows, self.labels = nn.Linear(FEATURES, width), nn.Embedding(CLASSES, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, rows: Tensor, labels: Tensor) -> Tensor:
        """Logits ``[B, N - C, 10]`` of the ``rows [B, N, F]`` after the first C.

        ``labels [B, C]`` are those of the first.
        """
        known = labels.shape[1]
        x = self.rows(rows)
        x = torch.cat([x[:, :known] + self.labels(labels), x[:, known:]], 1)
        for block in self.blocks:
            x = block(x, known)
        logits: Tensor = self.head(self.norm(x[:, known:]))
        return logits


def synthetic(tables: int, known: int, asked: int) -> tuple[Tensor, Tensor]:
    """Random tables: rows ``[B, N, F]`` and labels ``[B, N]``.

    Half of the calls draw the classes as clusters, the others as regions of a random network's
    output. The number of classes and of features that are not 0 is drawn for each call.
    """
    b, n = tables, known + asked
    classes = int(torch.randint(2, CLASSES + 1, ()))
    width = int(torch.randint(3, FEATURES + 1, ()))
    if torch.rand(()) < 0.5:
        each = int(torch.randint(1, 4, ()))
        centres = torch.randn(b, classes * each, width) * (0.5 + 1.5 * torch.rand(b, 1, 1))
        cluster = torch.randint(classes * each, (b, n))
        noise = torch.randn(b, n, width) @ (torch.randn(b, width, width) / math.sqrt(width))
        x = centres.gather(1, cluster[..., None].expand(-1, -1, width)) + noise
        y = cluster % classes
    else:
        hidden = 24
        causes = torch.randn(b, n, int(torch.randint(2, 9, ())))
        first = torch.tanh(1.5 * causes @ _weights(b, causes.shape[-1], hidden))
        second = torch.tanh(1.5 * first @ _weights(b, hidden, hidden))
        x = torch.cat([first, second], -1)[..., torch.randperm(2 * hidden)[:width]]
        x = x + 0.1 * torch.rand(b, 1, 1) * torch.randn(b, n, width)
        score = torch.cat([causes, second], -1)
        score = score @ _weights(b, score.shape[-1], classes)
        y = (score - score.mean(1, keepdim=True)).argmax(-1)
    x = x * torch.exp(-0.15 * torch.rand(b, 1, 1) * torch.arange(width))
    x = F.pad(normalised(x, known), (0, FEATURES - width))
    return x, torch.rand(b, CLASSES).argsort(1)[:, :classes].gather(1, y)


def _weights(b: int, inputs: int, outputs: int) -> Tensor:
    return torch.randn(b, inputs, outputs) / math.sqrt(inputs)


def normalised(x: Tensor, known: int) -> Tensor:
    """Rows ``[B, N, f]`` around 0, of mean square 1 over all features, by the first C rows."""
    x = x - x[:, :known].mean(1, keepdim=True)
    return x / x[:, :known].square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-6)


class Synthetic(Sequence[tuple[Tensor, Tensor]]):
    """Batches of synthetic tables to learn from, drawn anew at every access."""

    def __init__(self, count: int, tables: int = 2) -> None:
        self.count, self.tables = count, tables

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: Any) -> Any:
        rows, labels = synthetic(self.tables, CONTEXT, ASKED)
        return rows, labels[:, :CONTEXT]


def train() -> nn.Module:
    """The trained model; prints the loss now and then, and the accuracy on the real tables."""
    torch.manual_seed(0)
    model, start = PriorFitted(), time.time()
    for steps, tables, most, rate in STAGES:
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
        mean = math.log(CLASSES)
        for step in range(steps):
            known = int(torch.randint(most // 4, most + 1, ()))
            rows, labels = synthetic(tables, known, 64)
            logits = model(rows, labels[:, :known])
            loss = F.cross_entropy(logits.flatten(0, 1), labels[:, known:].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            mean += 0.01 * (loss.item() - mean)
            if step % 500 == 499 or step == steps - 1:
                print(
                    f"{most} rows, step {step + 1}: loss {mean:.3f}, {time.time() - start:.0f} s",
                    flush=True,
                )
        print({name: round(x, 4) for name, x in accuracies(model).items()}, flush=True)
    return model


def real() -> dict[str, tuple[Tensor, Tensor]]:
    """scikit-learn's data sets: rows ``[n, f]`` and classes ``[n]``, in a fixed random order."""
    from sklearn import datasets

    found = {}
    for name in ("digits", "breast_cancer", "wine", "iris", "diabetes"):
        x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
        y = (y > np.median(y)).astype(int) if name == "diabetes" else y
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
        found[name] = torch.from_numpy(x).float()[order], torch.from_numpy(y).long()[order]
    found["odd"] = found["digits"][0].roll(64, 0), found["digits"][1].roll(64, 0) % 2
    return found


def tables() -> list[tuple[str, Tensor, Tensor]]:
    """Names, rows ``[N, F]`` and labels ``[N]`` of real tables: each row of a set is asked once.

    Features are scaled to variance 1 and projected onto the first principal components of the
    context. Rows that do not fill a table are left out; the order is random and fixed.
    """
    draw, found = torch.Generator().manual_seed(0), []
    for name, (x, y) in real().items():
        for asked in torch.arange(len(y)).split(ASKED):
            if len(asked) < ASKED:
                continue
            others = torch.ones(len(y), dtype=torch.bool).index_fill(0, asked, value=False)
            context = others.nonzero().flatten()
            while len(context) < CONTEXT:
                context = torch.cat([context, context])
            context = context[torch.randperm(len(context), generator=draw)[:CONTEXT]]
            index = torch.cat([context, asked])
            found.append((name, _projected(x[index]), y[index]))
    order = torch.randperm(len(found), generator=draw).tolist()
    return [found[i] for i in order]


def _projected(x: Tensor) -> Tensor:
    """The rows ``[N, f]`` of a table as the model takes them, ``[N, F]``."""
    known = x[:CONTEXT]
    x = (x - known.mean(0)) / known.std(0).clamp_min(1e-6)
    _, _, components = torch.linalg.svd(x[:CONTEXT], full_matrices=False)
    x = normalised((x @ components[:FEATURES].T)[None], CONTEXT)[0]
    return F.pad(x, (0, FEATURES - x.shape[1]))


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Per row 1.0 where the arg-max of ``logits [B, n, 10]`` is the label ``[B * n]``, else 0."""
    return (logits.argmax(-1).flatten() == labels).float()


def accuracies(model: nn.Module) -> dict[str, float]:
    """The share of rows classified right, by data set."""
    found: dict[str, list[float]] = {}
    with torch.no_grad():
        for name, x, y in tables():
            right = correct(model(x[None], y[None, :CONTEXT]), y[CONTEXT:])
            found.setdefault(name, []).append(float(right.mean()))
    return {name: sum(x) / len(x) for name, x in sorted(found.items())}


def task() -> Task:
    """The task: a table of 1152 rows as served, real tables to judge, synthetic ones to learn."""
    model = PriorFitted()
    model.load_state_dict(load_file(CHECKPOINT))
    judged = [((x[None], y[None, :CONTEXT]), y[CONTEXT:]) for _, x, y in tables()]
    torch.manual_seed(0)
    drawn = Synthetic(8)
    return Task(
        name="tabular",
        model=model.eval(),
        example=judged[0][0],
        calibration=[drawn[i] for i in range(8)],
        validation=judged,
        score=correct,
        recovery=Synthetic(10_000),
    )


if __name__ == "__main__":
    save_file(train().state_dict(), Path(sys.argv[1]) if len(sys.argv) > 1 else CHECKPOINT)
