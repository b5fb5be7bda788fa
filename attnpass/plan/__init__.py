"""Which form runs at which site, with its parameters, in memory and on disk."""

from __future__ import annotations

from attnpass.plan.delta import Delta
from attnpass.plan.entry import Entry, assign
from attnpass.plan.plan import Plan

__all__ = ["Delta", "Entry", "Plan", "assign"]
