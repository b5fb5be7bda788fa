"""Checks of a model, a plan, or this machine; nothing is searched.

May import ``tuner.measure`` and the library.
"""

from __future__ import annotations

from attnpass.tuner.check.doctor import Finding, examine
from attnpass.tuner.check.roundtrip import Roundtrip, check_roundtrip
from attnpass.tuner.check.serve import Served, serve_check
from attnpass.tuner.check.similarity import Similarities, similarities
from attnpass.tuner.check.verify import Verification, verify_plan

__all__ = [
    "Finding",
    "Roundtrip",
    "Served",
    "Similarities",
    "Verification",
    "check_roundtrip",
    "examine",
    "serve_check",
    "similarities",
    "verify_plan",
]
