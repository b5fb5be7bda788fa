"""Accuracy back: closed-form calibration, then distillation."""

from __future__ import annotations

from attnpass.recover.calibration import calibrate, fit, fit_sites
from attnpass.recover.checkpoint import Checkpoint
from attnpass.recover.distillation import add_deltas, distil
from attnpass.recover.fit_skipat import rows_kept
from attnpass.recover.losses import LEAST, Global, Local, relative
from attnpass.recover.observation import observe
from attnpass.recover.options import DistilOptions
from attnpass.recover.samples import MapSample, Observed, Sample
from attnpass.recover.trainer import Progress, Trainer

__all__ = [
    "Checkpoint",
    "DistilOptions",
    "Global",
    "LEAST",
    "Local",
    "MapSample",
    "Observed",
    "Progress",
    "Sample",
    "Trainer",
    "add_deltas",
    "calibrate",
    "distil",
    "fit",
    "fit_sites",
    "observe",
    "relative",
    "rows_kept",
]
