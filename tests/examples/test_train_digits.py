"""The script that trains the digits checkpoint writes weights that the model loads."""

from __future__ import annotations

import sys

import torch
from safetensors.torch import load_file
from scripts import train_digits

from attnpass.tuner.digits import DigitsViT


def test_a_short_training_writes_weights_that_the_model_loads(tmp_path, monkeypatch, capsys):
    def small() -> DigitsViT:
        return DigitsViT(dim=16, depth=1, heads=2)

    images, labels = train_digits.images()
    few = (images[: train_digits.TRAIN + 100], labels[: train_digits.TRAIN + 100])
    monkeypatch.setattr(train_digits, "EPOCHS", 5)
    monkeypatch.setattr(train_digits, "BATCH", 256)
    monkeypatch.setattr(train_digits, "DigitsViT", small)
    monkeypatch.setattr(train_digits, "images", lambda: few)
    path = tmp_path / "digits.safetensors"
    monkeypatch.setattr(sys, "argv", ["train_digits.py", str(path)])
    train_digits.main()
    assert "epoch   5  loss" in capsys.readouterr().out
    torch.manual_seed(0)
    start, net = small().state_dict(), small()
    net.load_state_dict(load_file(path))
    assert any(not torch.equal(v, start[k]) for k, v in net.state_dict().items())
    assert all(torch.isfinite(v).all() for v in net.state_dict().values())
