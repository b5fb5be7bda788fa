"""A run as one HTML file: tables and the picture inside, no network needed."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path

from attnpass.console import PlainConsole
from attnpass.errors import MissingDependencyError, OutputError
from attnpass.files import reason, replace_file
from attnpass.text import printable
from attnpass.tuner.search import LOSSLESS, RunResult, advise
from attnpass.tuner.show.pictures import draw_front
from attnpass.tuner.show.tables import front_table, sensitivity_table
from attnpass.tuner.show.words import verdict

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}
pre{overflow-x:auto;font-size:12px;line-height:1.3}img{max-width:100%}"""


def write_report(result: RunResult, path: Path) -> Path:
    """Write the report of a finished run to ``path`` and its picture beside it.

    Raises:
        OutputError: a file cannot be written.
    """
    advice = advise(result)  # which names the ceiling, too
    parts = [
        f"<h1>attnpass: {html.escape(result.task)}</h1>",
        f"<p>{html.escape(verdict(result))}.</p>",
        "".join(f"<p>{html.escape(line)}</p>" for line in advice) or _ceiling(result),
        _picture(result, path.with_suffix(".png")),
    ]
    for table in (front_table(result), sensitivity_table(result)):
        out = io.StringIO()
        PlainConsole(file=out, width=170).print(table)
        parts.append(f"<pre>{html.escape(out.getvalue())}</pre>")
    stored = result.as_dict()
    where = {k: stored[k] for k in ("device", "versions", "created", "settings")}
    text = html.escape(json.dumps(where, indent=1, default=str))
    parts.append(f"<h2>Where and with what</h2><pre>{text}</pre>")
    page = f"<!doctype html><meta charset=utf-8><title>attnpass</title><style>{STYLE}</style>"
    try:
        text = printable(page + "\n".join(filter(None, parts)), keep="\n")
        replace_file(path, lambda half: half.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise OutputError(
            f"expected to write {path}, got {reason(error)}; choose another file with --out"
        ) from error
    return path


def _ceiling(result: RunResult) -> str:
    """The speed-ups that no plan can beat, empty where they were not measured."""
    facts = result.facts
    which = "the lossless plan" if facts.baseline == LOSSLESS else "the compiled model"
    share, kept, skipat = facts.attention_share, facts.ceiling, facts.ceiling_skipat
    if share is None or kept is None or skipat is None:
        return ""
    return (
        f"<p>Attention is {share:.0%} of the time of {which}; no plan that"
        f" keeps the projections can gain more over it than {kept:.2f}x, no plan at all"
        f" more than {max(kept, skipat):.2f}x.</p>"
    )


def _picture(result: RunResult, path: Path) -> str:
    """The picture inside the page, or why there is none."""
    try:
        data = base64.b64encode(draw_front(result, path).read_bytes()).decode()
    except MissingDependencyError as error:
        return f"<p>{html.escape(str(error))}</p>"
    return f"<img alt='front of plans' src='data:image/png;base64,{data}'>"
