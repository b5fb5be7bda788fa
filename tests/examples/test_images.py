"""The script that trains the images' model, at a small size; the task of the weights it ships."""

from __future__ import annotations

import pytest
import torch
from scripts import images

import attnpass
from attnpass.tuner.digits import DigitsViT


def test_a_short_training_goes_from_small_images_to_large_ones(monkeypatch, capsys):
    monkeypatch.setattr(images, "build", lambda side: DigitsViT(16, 1, 2, side))
    monkeypatch.setattr(images, "STAGES", ((16, 1, 1e-3), (32, 1, 1e-3)))
    monkeypatch.setattr(images, "TRAIN", 1700)
    monkeypatch.setattr(images, "BATCH", 256)
    model = images.train()
    assert model.pos_embed.shape == (1, 257, 16)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("16 pixels, epoch 1: loss") and second.startswith("32 pixels")


def test_positions_are_spread_over_the_larger_grid():
    known = torch.zeros(1, 17, 2)
    known[:, 1:, 0] = torch.arange(16).float()
    known[:, 0] = 7.0
    spread = images.enlarged({"pos_embed": known}, 16)["pos_embed"]
    assert spread.shape == (1, 65, 2) and torch.equal(spread[:, 0], known[:, 0])
    rows = spread[0, 1:, 0].reshape(8, 8)
    assert float(rows.mean()) == pytest.approx(7.5) and bool((rows.diff() >= 0).all())


@pytest.mark.slow
def test_the_task_has_twelve_layers_of_1025_tokens():
    task = images.task()
    sites = attnpass.Capture(task.model).trace(*task.example).sites
    assert len(sites) == 12 and {s.query_len for s in sites} == {1025}
    with torch.no_grad():
        inputs, labels = task.validation[0]
        assert float(task.score(task.model(*inputs), labels).mean()) > 0.9
