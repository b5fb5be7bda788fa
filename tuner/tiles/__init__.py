"""Tile sizes by measurement, per shape class.

``shapes_of`` gives the attention shapes of a task, ``tune`` measures a tile for each and stores
it. May import ``tuner.measure``, ``tuner.progress`` and the library. Imports optuna.
"""

from __future__ import annotations

from attnpass.tuner.tiles.attention_call import ALLOWED, Shape, shapes_of
from attnpass.tuner.tiles.study import tune

__all__ = ["ALLOWED", "Shape", "shapes_of", "tune"]
