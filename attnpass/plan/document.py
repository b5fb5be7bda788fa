"""Plan: which form runs at which site, with its parameters; JSON and safetensors on disk.

Loading never unpickles. A plan fits a site by name and structure; what does not fit stays softmax.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from attnpass import forms
from attnpass.errors import OptionError, PlanError
from attnpass.fingerprint import digest_weights
from attnpass.plan.entry import Entry
from attnpass.site import FORMS

VERSION = 1


def _entry(name: str, raw: Any, path: Path) -> Entry:
    """One validated entry of a plan file."""
    if not isinstance(raw, dict) or raw.get("form") not in FORMS:
        got = raw.get("form") if isinstance(raw, dict) else raw
        raise PlanError(f"expected a form of {', '.join(FORMS)} at {name} in {path}, got {got!r}")
    options = raw.get("options", {})
    if not isinstance(raw.get("fits", {}), dict):
        raise PlanError(
            f"expected 'fits' to be an object at {name} in {path}, got {raw['fits']!r}"
        )
    try:
        forms.check_names(raw["form"], options)
    except (OptionError, TypeError) as error:
        raise PlanError(f"{error} (at {name} in {path})") from error
    return Entry(
        raw["form"], dict(options), dict(raw.get("fits", {})), str(raw.get("weights", ""))
    )


def _sorted(context: Mapping[str, Any]) -> str:
    return json.dumps(context, sort_keys=True)


def _digest_all(tensors: Mapping[str, Tensor]) -> str:
    return digest_weights(tensors[key] for key in sorted(tensors))
