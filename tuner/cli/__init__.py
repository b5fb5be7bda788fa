"""The ``attnpass`` command: arguments and printing, no decisions.

``main`` is the group with all commands. May import every room; a command imports the rooms that
it needs when it runs, so that ``attnpass --help`` is quick.
"""

from __future__ import annotations

from attnpass.tuner.cli import (
    building,
    checks,
    cleaning,
    completing,
    describing,
    plans,
    questions,
    runs,
    tile_sizes,
    tuning,
)
from attnpass.tuner.cli.command import main

__all__ = ["main"]
