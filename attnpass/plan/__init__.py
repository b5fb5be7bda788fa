"""A plan: the form of every attention site, the forms' parameters, and the weights it belongs to.

The room may import the forms that a plan builds, the kernels' tiles that it carries, fingerprints
and files. ``Plan.create`` and ``Plan.bind`` import the capture when they are called.
"""

from __future__ import annotations

from attnpass.plan.delta import Delta, added
from attnpass.plan.entry import Entry, assign, warn_or_raise
from attnpass.plan.identity import Place, Places, places_in
from attnpass.plan.plan import Plan
from attnpass.plan.tensors import read_tensors

__all__ = [
    "Delta",
    "Entry",
    "Place",
    "Places",
    "Plan",
    "added",
    "assign",
    "places_in",
    "read_tensors",
    "warn_or_raise",
]
