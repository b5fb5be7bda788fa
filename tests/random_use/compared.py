"""How results are compared, and a model's buffers put back."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

BOUNDS = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 8e-2}
"""Largest difference, relative to the largest number. The forms count lengths in float32;
bfloat16 has 8 bits, and the models a dozen roundings one after another."""

HARMLESS = ("gradients are on", "trained on other weights", "numbers are void", "is not in the")


class Wrong(Exception):
    """A result that differs, or an error that should not be."""


class Undecided(Exception):
    """Nothing can be said of a result; counted like a refusal."""


class Aloud(logging.Handler):
    """Warnings of attnpass that say that something runs unchanged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if not any(part in text for part in HARMLESS):
            self.lines.append(text)


def weights(out: Tensor) -> Tensor:
    """The factors of a sum whose gradients are compared."""
    return torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)


def copies(model: nn.Module) -> dict[str, Tensor]:
    """The buffers as they are now."""
    return {n: b.detach().clone() for n, b in model.named_buffers()}


def restore(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Put buffers back, unseen by graphs that have saved them and will be differentiated."""
    for n, b in model.named_buffers():
        b.data.copy_(values[n])


def error(got: Tensor, want: Tensor) -> float:
    """The largest difference relative to the largest number; infinite for other shapes or NaN."""
    if got.shape != want.shape or bool(got.isnan().any()) != bool(want.isnan().any()):
        return float("inf")
    got, want = got.detach().double().nan_to_num(), want.detach().double().nan_to_num()
    return float((got - want).abs().max() / want.abs().max().clamp_min(1e-3))
