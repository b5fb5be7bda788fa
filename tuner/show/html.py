"""A run as one HTML file: what to do next, figures, tables; no network needed.

A browser without scripts, and a reader without eyes, find the same in tables.
"""

from __future__ import annotations

import base64
import html
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attnpass.errors import MissingDependencyError, OutputError
from attnpass.files import reason, replace_file
from attnpass.text import printable
from attnpass.tuner.search import PlanRow, RunResult
from attnpass.tuner.show.figures import figures, measured, plotly_script
from attnpass.tuner.show.pictures import draw_front
from attnpass.tuner.show.report_rows import (
    ceiling_rows,
    layer_rows,
    noise_rows,
    plan_rows,
    where_rows,
)
from attnpass.tuner.show.tables import percent
from attnpass.tuner.show.words import command_of, counts, next_words, use_of, verdict

HERE = Path(__file__).parent

SCRIPT = "<script>/* plotly */</script>"
"""Where plotly's source goes."""


def write_report(result: RunResult, path: Path) -> Path:
    """Write the report of a finished run to ``path`` and its picture beside it.

    Raises:
        OutputError: a file cannot be written.
    """
    drawn, scripts, static = _drawn(result, path.with_suffix(".png"))
    parts = [
        f"<h1>attnpass: {_text(result.task)}</h1>",
        f"<p>{_text(verdict(result))}.</p>",
        _section("What to do next", _list(next_words(result), "ol")),
        _section("Plans: speed against accuracy", _front(result, drawn, static)),
        _section("Every plan that was judged", _plans(result)),
        _section("What each form costs and saves, layer by layer", _layers(result, drawn)),
        _section("How fast it can become", _pairs(ceiling_rows(result))),
        _section("How noisy the machine was", _pairs(noise_rows(result))),
        _section("What became of the plans", _table(("outcome", "plans"), counts(result), "")),
        _section("Layers that resemble each other (CKA)", _cka(result)),
        _section("Where and with what", _where(result)),
        _section("The same again", f"<pre>{_text(command_of(result))}</pre>"),
    ]
    data = {"figures": drawn, "plans": {r.plan: _chosen(result, r) for r in measured(result)}}
    # plotly's own source stays as it is
    page = printable(_page(result.task, [*filter(None, parts)], data), keep="\n")
    text = page.replace(SCRIPT, f"<script>{scripts}</script>" if scripts else "", 1)
    try:
        replace_file(path, lambda half: half.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise OutputError(
            f"expected to write {path}, got {reason(error)}; choose another file with --out"
        ) from error
    return path


def _page(title: str, parts: Sequence[str], data: Mapping[str, Any]) -> str:
    """The whole page; what is inside scripts cannot end them."""
    held = json.dumps(data).replace("<", "\\u003c")
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>attnpass: {_text(title)}</title>",
            # an icon of its own, for which a browser would ask otherwise
            '<link rel="icon" href="data:,">',
            f"<style>{(HERE / 'report.css').read_text()}</style></head><body><main>",
            *parts,
            f'</main><script type="application/json" id="data">{held}</script>',
            SCRIPT,
            f"<script>{(HERE / 'report.js').read_text()}</script>",
            "</body></html>",
        ]
    )


def _drawn(result: RunResult, picture: Path) -> tuple[dict[str, Any], str, str]:
    """The interactive figures with their script, and the picture or why there is none."""
    try:
        data = base64.b64encode(draw_front(result, picture).read_bytes()).decode()
        image = f'<img alt="front of plans" src="data:image/png;base64,{data}">'
    except MissingDependencyError as error:
        image = f"<p>{_text(str(error))}</p>"
    try:
        return figures(result), plotly_script(), f"<noscript>{image}</noscript>"
    except MissingDependencyError as error:
        return {}, "", f'{image}<p class="faint">{_text(str(error))}</p>'


def _front(result: RunResult, drawn: Mapping[str, Any], static: str) -> str:
    """The figure, and the plan that was chosen in it with the code that uses it."""
    rows = measured(result)
    figure = ""
    if "front" in drawn:
        figure = (
            "<p>A point is a plan; bars are 95 % intervals. Hover over a point to see its layers,"
            ' click it, or choose it below, to see how to use it.</p><div id="front"'
            ' class="figure" role="img" aria-label="speed-up against accuracy of every judged'
            ' plan; the table below holds the same numbers"></div>'
        )
    if not rows:
        return figure + static
    first = next((r.plan for r in rows if r.plan == result.best), rows[0].plan)
    choices = "".join(
        f'<option value="{_text(r.plan)}"{" selected" if r.plan == first else ""}>'
        f"{_text(r.plan)}{' (best)' if r.plan == result.best else ''}</option>"
        for r in rows
    )
    told = _chosen(result, next(r for r in rows if r.plan == first))
    return (
        f'{figure}{static}<p><label for="plan">Plan</label> <select id="plan">{choices}</select>'
        f'</p><div id="chosen" class="panel" aria-live="polite"><p id="told">{_text(told["told"])}'
        f'</p><p class="faint" id="layers">{_text(told["layers"])}</p>'
        f'<pre id="code">{_text(told["code"])}</pre></div>'
    )


def _chosen(result: RunResult, row: PlanRow) -> dict[str, str]:
    """What is shown of a plan when it is chosen."""
    assert row.latency is not None and row.held_out is not None
    proof = "proven" if row.held_out.upper <= result.max_drop else "not proven"
    return {
        "told": f"{row.latency.ratio} over the compiled model, drop {percent(row.held_out.drop)},"
        f" at most {percent(row.held_out.upper)}: {proof} for {percent(result.max_drop)}",
        "layers": "; ".join(f"{site}: {form}" for site, form in row.forms.items()),
        "code": use_of(row.plan),
    }


def _plans(result: RunResult) -> str:
    """All judged plans as a table."""
    columns, rows = plan_rows(result)
    best = [i for i, row in enumerate(rows) if row[0] == result.best]
    note = f"Held-out items; allowed drop {percent(result.max_drop)}. The best plan is green."
    return _table(columns, rows, note, numbers=True, best=best) if rows else "<p>None.</p>"


def _layers(result: RunResult, drawn: Mapping[str, Any]) -> str:
    """Heat maps of damage and saved time, and the same with reasons as a table."""
    choices = list(result.facts.saving_ms_per_site or {})
    if not choices or not result.sites:
        return ""
    parts = []
    if "damage" in drawn:
        for name, title in (
            ("damage", "How far the output moves where this form is in this layer alone"),
            ("saved", "Milliseconds that this form saves in this layer"),
        ):
            parts.append(
                f"<p>{title}. An empty cell was not measured; hovering says why.</p>"
                f'<div id="{name}" class="figure" role="img" aria-label="{title}; the table below'
                ' says the same"></div>'
            )
    table = _table(*layer_rows(result), "")
    return "".join(parts) + f"<details><summary>The same as a table</summary>{table}</details>"


def _cka(result: RunResult) -> str:
    task = shlex.quote(result.settings.get("task") or result.task)
    return (
        "<p>CKA compares what two layers do to the same inputs: 1 is the same up to rotation and"
        " scale, 0 has nothing in common. Where a layer's output is like that of the layer before,"
        " skipat may leave out its attention. It is not measured by a run; this draws it:</p>"
        f"<pre>attnpass cka {_text(task)} --picture cka.png</pre>"
    )


def _where(result: RunResult) -> str:
    """Settings, device, versions and date as one table."""
    table = _table(("", ""), where_rows(result), "")
    return f"<details><summary>Settings and versions</summary>{table}</details>"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _list(lines: Iterable[str], kind: str) -> str:
    items = "".join(f"<li>{_text(line)}</li>" for line in lines)
    return f"<{kind}>{items}</{kind}>" if items else ""


def _pairs(rows: Iterable[tuple[str, str]]) -> str:
    found = "".join(f"<dt>{_text(a)}</dt><dd>{_text(b)}</dd>" for a, b in rows)
    return f"<dl>{found}</dl>" if found else ""


def _table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    caption: str,
    *,
    numbers: bool = False,
    best: Sequence[int] = (),
) -> str:
    """A table that scrolls by itself where it is wider than the screen."""
    kind = ' class="number"' if numbers else ""
    head = "".join(
        f'<th scope="col"{kind if i else ""}>{_text(c)}</th>' for i, c in enumerate(columns)
    )
    body = ""
    for i, row in enumerate(rows):
        first, *rest = (_text(str(x)) for x in row)
        cells = "".join(f"<td{kind}>{x}</td>" for x in rest)
        mark = ' class="best"' if i in best else ""
        body += f'<tr{mark}><th scope="row">{first}</th>{cells}</tr>'
    told = f"<caption>{_text(caption)}</caption>" if caption else ""
    titles = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="table">'
        f"<table>{told}{titles}<tbody>{body}</tbody></table></div>"
    )


def _text(text: str) -> str:
    return html.escape(text)
