"""A model captured once and run under any plan, no compiler.

``Capture`` keeps Dynamo's guards and exchanges the graphs behind them; ``convert`` makes a plain
module, ``find_sites`` and ``explain`` report. Imports ``plan``, ``rewrite`` and ``matching``;
never ``compiled``.
"""

from __future__ import annotations

from attnpass.capture.capture import Capture, buffers_kept, fresh_entry, frozen_parameters
from attnpass.capture.captured import CapturedGraph, Layer
from attnpass.capture.conversion import convert
from attnpass.capture.explanation import explain, find_sites
from attnpass.capture.node_values import Seen, watched

__all__ = [
    "Capture",
    "CapturedGraph",
    "Layer",
    "Seen",
    "buffers_kept",
    "frozen_parameters",
    "convert",
    "explain",
    "find_sites",
    "fresh_entry",
    "watched",
]
