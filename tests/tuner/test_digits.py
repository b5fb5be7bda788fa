"""The built-in task is real, right, and the same every time."""

from __future__ import annotations

import builtins

import pytest
import torch

from attnpass.errors import MissingDependencyError, TaskError
from attnpass.task import load_task
from attnpass.tuner import digits


def test_digits_is_real_and_right():
    task = load_task("digits")
    arguments, target = task.validation[0]
    with torch.no_grad():
        scores = torch.cat([task.score(task.model(*a), y) for a, y in list(task.validation)[:6]])
    assert sum(len(y) for _, y in task.validation) == 1000
    assert arguments[0].shape == (50, 1, 32, 32) and target.shape == (50,)
    # 97.8 % over all 1000; 300 of them here
    assert scores.mean() >= 0.97


def test_images_are_augmented_anew_and_keep_their_shape():
    torch.manual_seed(0)
    batches = digits.Augmented(torch.rand(20, 1, 32, 32))
    assert len(batches) == 2
    (first,), (again,) = batches[0], batches[0]
    assert first.shape == (16, 1, 32, 32) and not torch.equal(first, again)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "CHECKPOINT", tmp_path / "none.safetensors")
    with pytest.raises(TaskError, match="run examples/train_digits.py to make it"):
        digits.task()
    real = builtins.__import__

    def missing(name, *given, **more):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *given, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingDependencyError, match="pip install 'attnpass\\[demo\\]'"):
        digits.images()
