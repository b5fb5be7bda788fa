"""A run as one HTML file: tables and the picture inside, no network needed."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from attnpass.errors import MissingDependencyError, PlanError
from attnpass.tuner.show import pictures
from attnpass.tuner.show import tables as show

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}
pre{overflow-x:auto;font-size:12px;line-height:1.3}img{max-width:100%}"""


def report(result: Mapping[str, Any], path: Path) -> Path:
    """Write the report of a finished run to ``path`` and its picture beside it.

    Raises:
        PlanError: the file cannot be written.
    """
    parts = [
        f"<h1>attnpass: {html.escape(str(result['task']))}</h1>",
        f"<p>{html.escape(show.verdict(result))}.</p>",
    ]
    facts = result["facts"]
    if "ceiling" in facts:
        parts.append(
            f"<p>Attention is {facts['attention_share']:.0%} of the measured time; no plan that"
            f" keeps the projections can gain more than {facts['ceiling']:.2f}x, no plan at all"
            f" more than {max(facts['ceiling'], facts['ceiling_skipat']):.2f}x.</p>"
        )
    try:
        image = pictures.picture(result, path.with_suffix(".png"))
        data = base64.b64encode(image.read_bytes()).decode()
        parts.append(f"<img alt='front of plans' src='data:image/png;base64,{data}'>")
    except MissingDependencyError as error:
        parts.append(f"<p>{html.escape(str(error))}</p>")
    for table in (show.front_table(result), show.sensitivity_table(result)):
        out = io.StringIO()
        Console(file=out, width=170).print(table)
        parts.append(f"<pre>{html.escape(out.getvalue())}</pre>")
    where = json.dumps(
        {k: result[k] for k in ("device", "versions", "created", "settings")},
        indent=1,
        default=str,
    )
    parts.append(f"<h2>Where and with what</h2><pre>{html.escape(where)}</pre>")
    page = f"<!doctype html><meta charset=utf-8><title>attnpass</title><style>{STYLE}</style>"
    try:
        path.write_text(page + "\n".join(parts))
    except OSError as error:
        raise PlanError(f"expected to write {path}, got {error.strerror}") from error
    return path
