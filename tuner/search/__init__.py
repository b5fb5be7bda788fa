"""A tuning run: which form at which site, by measured accuracy and latency.

``inspect_task`` captures the model of a task, ``execute`` runs the stages and gives a
``RunResult``, which the database stores and the rooms that show results read. May import
``tuner.measure``, ``tuner.progress`` and the library. What only a search needs is loaded when it
is first asked for: commands that show results open this door, too, and should be quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from attnpass.tuner.search.advice import advise
from attnpass.tuner.search.menu import USUAL, form_of, menu
from attnpass.tuner.search.observers import Observer, Observers, first_line
from attnpass.tuner.search.plan_row import PlanRow
from attnpass.tuner.search.result import LOSSLESS, Facts, RunResult
from attnpass.tuner.search.settings import REJECTED, Settings
from attnpass.tuner.search.stored import read_result

if TYPE_CHECKING:
    from attnpass.tuner.search.inspection import Inspection, inspect_task
    from attnpass.tuner.search.questions import (
        Solution,
        Verdict,
        differences,
        explain_choice,
        solve,
    )
    from attnpass.tuner.search.run import execute
    from attnpass.tuner.search.workers import pool_of

_LATE = {
    **dict.fromkeys(("Inspection", "inspect_task"), "inspection"),
    **dict.fromkeys(
        ("Solution", "Verdict", "differences", "explain_choice", "solve"), "questions"
    ),
    "execute": "run",
    "pool_of": "workers",
}

__all__ = [
    "LOSSLESS",
    "REJECTED",
    "USUAL",
    "Facts",
    "Inspection",
    "Observer",
    "Observers",
    "PlanRow",
    "RunResult",
    "Settings",
    "Solution",
    "Verdict",
    "advise",
    "differences",
    "execute",
    "explain_choice",
    "form_of",
    "first_line",
    "inspect_task",
    "menu",
    "pool_of",
    "read_result",
    "solve",
]


def __getattr__(name: str) -> Any:
    """A name of ``_LATE`` from its module."""
    if name not in _LATE:
        raise AttributeError(f"module 'attnpass.tuner.search' has no attribute {name!r}")
    return getattr(import_module(f"attnpass.tuner.search.{_LATE[name]}"), name)
