"""``find_sites`` and ``explain``: the attention of a model, and the rewrites of a plan."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from attnpass.capture.capture import Capture
from attnpass.capture.uncaptured import uncaptured, with_break
from attnpass.errors import CaptureError
from attnpass.plan import Plan, assign
from attnpass.report import Report
from attnpass.torch_internals import graph_breaks

log = logging.getLogger("attnpass")


def find_sites(model: nn.Module, *args: Any, allow: Sequence[str] = (), **kwargs: Any) -> Report:
    """The attention sites and declines of ``model(*args, **kwargs)``; prints as a table.

    Warns where there is no attention at all.

    Raises:
        CaptureError: the model cannot be captured.
    """
    capture, before = Capture(model, allow=allow), len(graph_breaks())
    failed: CaptureError | None = None
    try:
        capture.trace(*args, **kwargs)
    except CaptureError as error:
        if capture.graphs:
            raise
        failed = error
    outside = uncaptured(capture, args, kwargs)
    if failed is not None and not outside:
        raise failed  # attention that no graph holds is a verdict; a model without any is none
    declined = capture.declined + outside
    breaks = graph_breaks()[before:]
    declined = [with_break(d, breaks) for d in declined]
    if not capture.sites:
        log.warning(
            "no attention found in %s; %d look-alikes declined",
            type(model).__name__,
            len(declined),
        )
    out = Report(capture.sites, declined, graphs=len(capture.graphs))
    capture.close()
    return out


def explain(
    model: nn.Module,
    *args: Any,
    form: str | None = None,
    form_options: Mapping[str, Any] | None = None,
    sites: Sequence[str] | str | None = None,
    plan: Plan | None = None,
    allow: Sequence[str] = (),
    **kwargs: Any,
) -> Report:
    """What ``form`` at ``sites``, or ``plan``, would rewrite, what not, and why.

    Raises:
        OptionError: unknown form or option, or a glob that matches no site.
        CaptureError: the model cannot be captured.
    """
    capture = Capture(model, allow=allow).trace(*args, **kwargs)
    out = Report(capture.sites, capture.declined, graphs=len(capture.graphs))
    if plan is None and form is not None:
        entries, declines = assign(capture.sites, form, form_options, sites)
        out.declined += declines
        if form == "softmax":
            out.rewritten = dict.fromkeys(entries, "softmax")
            return out
        plan = Plan(entries)
    if plan is not None:
        out.rewritten = capture.use(plan)
        out.plan = plan.hash
    return out
