"""The loop of distillation: AdamW, warm-up and cosine, clipping, early stop, checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

from attnpass.errors import OptionError


@dataclass(frozen=True)
class DistilOptions:
    """How to distil.

    Attributes:
        budget: seconds for all stages. steps: optimiser steps for all stages instead, which makes
            a run repeatable.
        local: share of the local stage, 0 to 1; the rest is global. Pays where what is learnt
            serves several plans, as in the tuner; for one plan global steps gave back more.
        rank: of the deltas; ``None`` full, 0 none: only the forms' parameters learn.
        softmax: whether the projections of sites that stay softmax learn too, in the global stage
            (an entry's option ``learns``); else their weights stay what they are.
        rate: learning rate, relative to the size of what is changed and to the loss at the start.
        outputs: what the model returns: ``logits`` (divergence of distributions) or ``features``
            (relative squared error).
        autocast: whether products are in bfloat16 (``torch.autocast``), what learns stays as it
            is; ``None`` where the device has instructions for it and the model is in float32.
        seed: of the order of batches, of random inputs and of low-rank deltas.

    Raises:
        OptionError: a value out of range.
    """

    budget: float = 300.0
    steps: int | None = None
    local: float = 0.0
    rank: int | None = None
    softmax: bool = False
    rate: float = 0.05
    outputs: str = "logits"
    autocast: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "a budget of seconds > 0": 0 < self.budget < math.inf,
            "steps > 0": self.steps is None or self.steps > 0,
            "a local share from 0 to 1": 0 <= self.local <= 1,
            "a rank >= 0, or None for full deltas": self.rank is None or self.rank >= 0,
            "a rate > 0": self.rate > 0,
            "outputs 'logits' or 'features'": self.outputs in ("logits", "features"),
        }
        for rule, kept in rules.items():
            if not kept:
                raise OptionError(f"expected {rule}, got {self}")
