"""The database: runs, measurements, plans, pins and tiles in one SQLite file.

All SQL of attnpass is in this room. ``database`` opens the file and keeps it safe beside other
processes, ``store`` writes and reads the rows, ``tensor_files`` keeps the plans' large tensors
beside it. ``history`` shows what is stored, ``garbage`` removes what nobody will read again. The
room may import plans, tiles, fingerprints, files and errors.
"""

from __future__ import annotations

from attnpass.store.database import default_path, now
from attnpass.store.garbage import Removed, ago, collect_garbage, find_garbage
from attnpass.store.history import Comparison, compare, measurements
from attnpass.store.store import Store, key_of, measured_tiles, pinned_plans

__all__ = [
    "Comparison",
    "Removed",
    "Store",
    "ago",
    "collect_garbage",
    "compare",
    "default_path",
    "find_garbage",
    "key_of",
    "measured_tiles",
    "measurements",
    "now",
    "pinned_plans",
]
