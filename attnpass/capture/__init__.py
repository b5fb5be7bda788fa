"""A model captured once and run under any plan, no compiler."""

from __future__ import annotations

from attnpass.capture.capture import Capture, buffers_kept, fresh_entry
from attnpass.capture.captured import Graph, Layer
from attnpass.capture.conversion import convert
from attnpass.capture.explanation import explain, find_sites
from attnpass.capture.node_values import Seen, watched

__all__ = [
    "Capture",
    "Graph",
    "Layer",
    "Seen",
    "buffers_kept",
    "convert",
    "explain",
    "find_sites",
    "fresh_entry",
    "watched",
]
