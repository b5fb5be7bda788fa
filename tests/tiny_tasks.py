"""Small tasks for the tuner's tests, and broken ones. Import path: tests/tiny_tasks.py:NAME."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import torch
from torch import nn

from attnpass import Metric, Task
from attnpass.tuner.digits import DigitsViT, correct


def _model() -> nn.Module:
    torch.manual_seed(0)
    return DigitsViT(dim=16, depth=3, heads=2).eval()


def tiny(batches: int = 6, score=correct) -> Task:
    """A random model judged against its own answers: it is right on every item."""
    model = _model()
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(10 * batches, 1, 32, 32, generator=generator)
    learn = torch.rand(8, 1, 32, 32, generator=generator)
    with torch.no_grad():
        labels = model(images).argmax(-1)
    pairs = zip(images.split(10), labels.split(10), strict=True)
    return Task("tiny", model, (images[:2],), [(learn,)], [((x,), y) for x, y in pairs], score)


def served() -> Task:
    """Two shapes as served, and a second score: the logit of the right class."""
    task = tiny()
    (images,) = task.example
    task.examples = [((images,), 3.0), ((images[:1],), 1.0)]
    score = lambda out, y: out.double().gather(1, y[:, None])[:, 0]  # noqa: E731
    task.metrics = {"logit": Metric(score, max_drop=5.0)}
    return task


class Named(nn.Module):
    """A model whose argument can only be named."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *, image: torch.Tensor) -> torch.Tensor:
        return self.inner(image)


def named() -> Task:
    task = tiny()
    return replace(
        task,
        model=Named(task.model),
        example={"image": task.example[0]},
        calibration=[{"image": x} for (x,) in task.calibration],
        validation=[({"image": x}, y) for (x,), y in task.validation],
    )


def empty() -> Task:
    task = tiny()
    task.validation = []
    return task


def one_batch() -> Task:
    task = tiny()
    images, labels = zip(*((x, y) for (x,), y in task.validation), strict=True)
    task.validation = [((torch.cat(images),), torch.cat(labels))]
    return task


def one_item() -> Task:
    task = one_batch()
    task.validation = [((x[:1],), y[:1]) for (x,), y in task.validation]
    return task


def nan_scores() -> Task:
    return tiny(score=lambda out, target: out[:, 0] * float("nan"))


def half_scores() -> Task:
    return tiny(score=lambda out, target: correct(out, target) / 2)


def scalar_score() -> Task:
    return tiny(score=lambda out, target: correct(out, target).mean())


def no_attention() -> Task:
    task = tiny()
    task.model = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))
    return task


def not_a_task() -> int:
    return 3


def raises() -> Task:
    raise ValueError("no data here")


def _in_worker() -> bool:
    import multiprocessing

    return multiprocessing.parent_process() is not None


def crashes() -> Task:
    """Loads here, ends the worker."""
    if _in_worker():
        os._exit(7)
    return tiny()


def hangs() -> Task:
    """Loads here, hangs in the worker."""
    if _in_worker():
        time.sleep(600)
    return tiny()


def wrong_outputs() -> Task:
    task = tiny()
    task.outputs = "labels"
    return task


def retrieval() -> Task:
    """A random encoder; an item is found where its own output is the nearest of its split."""
    model = DigitsViT(dim=16, depth=3, heads=2).eval()
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(60, 1, 32, 32, generator=generator)
    with torch.no_grad():
        wanted = model(images)

    def found(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        distances = torch.cdist(target.double(), out.double())
        return (distances.argmin(1) == torch.arange(len(out))).float()

    pairs = zip(images.split(10), wanted.split(10), strict=True)
    return Task(
        "retrieval",
        model,
        (images[:2],),
        [(torch.rand(8, 1, 32, 32, generator=generator),)],
        [((x,), y) for x, y in pairs],
        found,
        outputs="features",
        pooled=True,
    )
