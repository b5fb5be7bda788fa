"""Capture a model once, then run it under any plan: switching a plan takes milliseconds.

Every captured graph sits behind a trampoline, so that Dynamo's guards and bytecode stay while the
graph that runs is exchanged. Graphs run eagerly, in plain operators: for accuracy, calibration and
distillation, not for speed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attnpass.errors import OptionError

Batch = tuple[Any, ...] | dict[str, Any]
"""The arguments of one call of a model: positional, or by name."""


def call(run: Callable[..., Any], batch: Batch) -> Any:
    """What ``run`` gives for the arguments of a batch."""
    return run(**batch) if isinstance(batch, dict) else run(*batch)


def check_batches(inputs: Any, verb: str, *, empty: bool = False) -> None:
    """Refuse what is not a sequence of batches, and none of them unless it may be ``empty``.

    Raises:
        OptionError: as it says.
    """
    if not (hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__")):
        raise OptionError(
            f"expected a sequence of batches to {verb} on, got {type(inputs).__name__};"
            " list(...) makes one"
        )
    if not len(inputs):
        if empty:
            return
        raise OptionError(f"expected at least one batch of inputs to {verb} on, got none")
    if not isinstance(inputs[0], (tuple, dict)):
        raise OptionError(
            f"expected batches to {verb} on that are tuples of a call's positional arguments,"
            f" or a dict of its named ones, got {type(inputs[0]).__name__};"
            " one argument x is (x,)"
        )
