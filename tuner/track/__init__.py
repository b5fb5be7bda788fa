"""Copies of a run for other tools: an Optuna study, an MLflow run, a table of all judged plans.

May import ``tuner.search``. Optuna and MLflow are imported when a copy is asked for. No copy is
read by a run: the database alone is.
"""

from __future__ import annotations

from attnpass.tuner.track.opening import open_observers
from attnpass.tuner.track.table import flat, write_table

__all__ = ["flat", "open_observers", "write_table"]
