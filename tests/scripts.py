"""The scripts of examples/ and benchmarks/ that tests use: ``from scripts import recovery``."""

from __future__ import annotations

import sys

from house import ROOT

sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "benchmarks")]

import ablation  # noqa: E402
import byte_model  # noqa: E402
import encoder_speed  # noqa: E402
import images  # noqa: E402
import judging  # noqa: E402
import minilm  # noqa: E402
import receptors  # noqa: E402
import recovery  # noqa: E402
import recovery_rank  # noqa: E402
import scale  # noqa: E402
import search  # noqa: E402
import search_problems  # noqa: E402
import skipat_phi  # noqa: E402
import slow_calls  # noqa: E402
import tabular  # noqa: E402
import train_digits  # noqa: E402
import train_forms  # noqa: E402
import trust  # noqa: E402

__all__ = [
    "ROOT",
    "ablation",
    "byte_model",
    "encoder_speed",
    "images",
    "judging",
    "minilm",
    "receptors",
    "search_problems",
    "recovery",
    "recovery_rank",
    "scale",
    "search",
    "skipat_phi",
    "slow_calls",
    "tabular",
    "train_digits",
    "train_forms",
    "trust",
]
