"""A plan: the form of every attention site, the forms' parameters, and the weights it belongs to.

The room may import the forms that a plan builds, the kernels' tiles that it carries, fingerprints
and files. ``Plan.create`` and ``Plan.bind`` import the capture when they are called.
"""

from __future__ import annotations

from attnpass.plan.delta import Delta
from attnpass.plan.entry import Entry, assign, warn_or_raise
from attnpass.plan.plan import Plan

__all__ = ["Delta", "Entry", "Plan", "assign", "warn_or_raise"]
