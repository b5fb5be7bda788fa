"""Recovery: makes a converted model do again what the original did, from unlabelled batches.

``calibrate`` fits the forms' parameters in closed form, site by site, in seconds. ``distil`` then
trains them, and deltas of the projections, against the original model. Both read activations of a
captured model (``attnpass.capture``) and change a plan (``attnpass.plan``), never the model.
Allowed imports: capture, plan, forms, rewrite, matching, graph, kernels' activations, and the
records of the top level; never compiled, store, task or the tuner.
"""

from __future__ import annotations

from attnpass.recover.calibration import calibrate, fit, fit_sites
from attnpass.recover.checkpoint import Checkpoint
from attnpass.recover.distances import LOGIT_FLOOR, relative_error
from attnpass.recover.distillation import add_deltas, distil
from attnpass.recover.distillation_loss import DistillationLoss
from attnpass.recover.global_loss import GlobalLoss
from attnpass.recover.local_loss import LocalLoss
from attnpass.recover.objective import Objective
from attnpass.recover.observation import Observed, observe
from attnpass.recover.options import DistilOptions
from attnpass.recover.padding import rows_kept
from attnpass.recover.samples import BlockSample, MapSample, Sample
from attnpass.recover.stage import Progress, Stage
from attnpass.recover.trainer import Trainer

__all__ = [
    "BlockSample",
    "Checkpoint",
    "DistilOptions",
    "DistillationLoss",
    "GlobalLoss",
    "LOGIT_FLOOR",
    "LocalLoss",
    "MapSample",
    "Objective",
    "Observed",
    "Progress",
    "Sample",
    "Stage",
    "Trainer",
    "add_deltas",
    "calibrate",
    "distil",
    "fit",
    "fit_sites",
    "observe",
    "relative_error",
    "rows_kept",
]
