"""The ``torch.compile`` entry, called by Dynamo once per graph; and its fallback.

A graph without attention goes to the inner compiler at once, and so does every graph under the
option ``form="none"``. An error of ours
never reaches a training run: the graph then runs unchanged, and the report says why.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from torch import fx

from attnpass import report as reports
from attnpass.compiled import Compiled, GraphCompiler, Options, compile_inner
from attnpass.errors import AttnpassError
from attnpass.graph import NormalizeError
from attnpass.matching import handing, marked, outgoing, same_axes
from attnpass.report import Report
from attnpass.site import Decline
from attnpass.torch_internals import dynamo_exceptions

log = logging.getLogger("attnpass")


def attnpass_backend(
    gm: fx.GraphModule,
    inputs: list[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Compiled:
    """``torch.compile`` backend: the graph under the chosen forms, compiled by ``inner``.

    Raises:
        OptionError: an unknown option or value.
        PlanError: the plan cannot be read, or with ``strict`` does not fit.
    """
    chosen = Options.parse(options, mode)
    off = chosen.form == "none" or os.environ.get("ATTNPASS_DISABLE") == "1"
    if off:
        return compile_inner(gm, inputs, chosen)
    axes = outgoing(gm, inputs)
    if not _has_anchor(gm):
        return handing(compile_inner(gm, inputs, chosen), axes)
    try:
        return handing(same_axes(gm, GraphCompiler(gm, inputs, chosen).compile()), axes)
    except AttnpassError:
        raise
    except dynamo_exceptions():
        raise
    except NormalizeError as error:
        decline = Decline("HOP_UNSUPPORTED", hint=str(error))
    except Exception as error:
        if chosen.strict:
            raise
        log.exception("attnpass failed inside; the model runs unchanged")
        decline = Decline("INTERNAL_ERROR", hint=f"{type(error).__name__}: {error}")
    reports.record(Report(declined=[decline], graphs=1))
    log.warning("graph left unchanged: %s", decline)
    return compile_inner(gm, inputs, chosen)


def _has_anchor(gm: fx.GraphModule) -> bool:
    """Whether any node of the graph, or of a graph inside it, may be attention."""
    return any(
        marked(node)
        or "flex_attention" in str(node.target)
        or getattr(node.target, "__name__", node.target) in ("exp", "exp2")
        for module in gm.modules()
        if isinstance(module, fx.GraphModule)
        for node in module.graph.nodes
    )
