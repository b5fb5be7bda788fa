"""attnpass: finds softmax attention in any PyTorch model and rewrites chosen layers.

``torch.compile(model, backend="attnpass", options={...})`` is the way in; the names below serve
those who look first, or plan by hand. Everything is loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Capture": "capture",
    "calibrate": "recover",
    "convert": "capture",
    "distil": "recover",
    "DistillationLoss": "recover",
    "explain": "capture",
    "find_sites": "capture",
    "Plan": "plan",
    "Report": "report",
    "compiled_report": "report",
    "reset_report": "report",
    "AttentionSite": "site",
    "Decline": "site",
    "Metric": "task",
    "Task": "task",
    "load_task": "task",
    "AttnpassError": "errors",
    "CaptureError": "errors",
    "MeasureError": "errors",
    "OptionError": "errors",
    "OutputError": "errors",
    "PlanError": "errors",
    "StoreError": "errors",
    "TaskError": "errors",
}

__all__ = tuple(_HOME)

if TYPE_CHECKING:
    from attnpass.capture import Capture, convert, explain, find_sites
    from attnpass.errors import (
        AttnpassError,
        CaptureError,
        MeasureError,
        OptionError,
        OutputError,
        PlanError,
        StoreError,
        TaskError,
    )
    from attnpass.plan import Plan
    from attnpass.recover import DistillationLoss, calibrate, distil
    from attnpass.report import Report, compiled_report, reset_report
    from attnpass.site import AttentionSite, Decline
    from attnpass.task import Metric, Task, load_task


def __getattr__(name: str) -> Any:
    """A public name, imported from its home when first used."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'attnpass' has no attribute {name!r}")
    value = getattr(import_module(f"attnpass.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
