"""The options of distillation."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from attnpass.errors import OptionError


@dataclass(frozen=True)
class DistilOptions:
    """How long distillation trains, which parameters learn, and how.

    Attributes:
        budget: seconds for all stages.
        steps: number of optimiser steps for all stages, in place of the budget; it makes a run
            repeatable.
        local: share of the local stage, 0 to 1; the rest is global. The local stage pays where its
            result serves several plans, as in the tuner. For one plan, global steps recover more.
        rank: of the deltas; ``None`` full, 0 none: only the forms' parameters learn.
        softmax: whether the projections of sites that stay softmax learn too, in the global stage
            (an entry's option ``learns``); else their weights do not change.
        rate: learning rate, relative to the size of the parameter that it changes and to the
            initial loss.
        outputs: what the model returns: ``logits`` (divergence of distributions) or ``features``
            (relative squared error).
        autocast: whether products are in bfloat16 (``torch.autocast``); parameters keep their
            dtype. ``None``: where the device has instructions for it and the model is in float32.
        micro_batch: items that are learned from at once; the gradients of a batch's parts are
            added up. ``None``: whole batches where memory holds what their gradients need, else
            as many items as it holds.
        recompute: whether activations are computed a second time for the gradients of the global
            stage (activation checkpointing): less memory, about a third more time. It is done
            anyway where memory does not hold those of one item.
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
    micro_batch: int | None = field(default=None, repr=False)  # a checkpoint is known by the repr
    recompute: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        rules = {
            "a budget of seconds > 0": 0 < self.budget < math.inf,
            "steps > 0": self.steps is None or self.steps > 0,
            "a local share from 0 to 1": 0 <= self.local <= 1,
            "a rank >= 0, or None for full deltas": self.rank is None or self.rank >= 0,
            "a rate > 0": self.rate > 0,
            "a micro_batch > 0, or None": self.micro_batch is None or self.micro_batch > 0,
            "outputs 'logits' or 'features'": self.outputs in ("logits", "features"),
        }
        for rule, kept in rules.items():
            if not kept:
                raise OptionError(f"expected {rule}, got {self}")

    @classmethod
    def named(cls, given: Mapping[str, Any], of: Collection[str] = ()) -> DistilOptions:
        """The options of these names; ``of`` those that are known, by default all.

        Raises:
            OptionError: an unknown name, or a value out of range.
        """
        known = of or [x.name for x in fields(cls)]
        unknown = ", ".join(sorted(given.keys() - set(known)))
        if unknown:
            raise OptionError(f"expected options of {', '.join(known)}; got {unknown}")
        try:
            return cls(**given)
        except TypeError as error:
            raise OptionError(f"expected options of other types: {error}") from error
