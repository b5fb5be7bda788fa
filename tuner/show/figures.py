"""The interactive figures of a report, as plotly's plain JSON; plotly.js draws them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attnpass.errors import MissingDependencyError
from attnpass.tuner.search import LOSSLESS, REJECTED, PlanRow, RunResult
from attnpass.tuner.show.tables import forms_line, percent

Figure = dict[str, Any]

GREEN, BLUE, GREY, RED = "#1a9850", "#3b82c4", "#8a94a0", "#d9534f"


def plotly_script() -> str:
    """The source of plotly.js, of the package plotly.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingDependencyError(
            "interactive pictures need plotly, which is not installed; pip install"
            " 'attnpass[plots]'"
        ) from error
    found: str = get_plotlyjs()
    return found


def figures(result: RunResult) -> dict[str, Figure]:
    """The figures that there are numbers for, by the id of their place in the page."""
    found = {"front": front_figure(result)} if measured(result) else {}
    choices = list(result.facts.saving_ms_per_site or {})
    if choices and result.sites:
        found["damage"] = _heat(result, choices, saved=False)
        found["saved"] = _heat(result, choices, saved=True)
    return found


def measured(result: RunResult) -> list[PlanRow]:
    """The plans that were timed and judged on held-out items."""
    rows = [*result.front, *result.slower]
    return [row for row in rows if row.latency is not None and row.held_out is not None]


def front_figure(result: RunResult) -> Figure:
    """Speed-up against the change of the held-out score, both with their intervals."""
    rows = measured(result)
    groups = [
        ("proven best", GREEN, [r for r in rows if r.plan == result.best]),
        ("front", BLUE, [r for r in result.front if r in rows and r.plan != result.best]),
        ("slower than the noise", GREY, [r for r in result.slower if r in rows]),
    ]
    data = [_points(name, colour, group) for name, colour, group in groups if group]
    gain = 1.0
    marks = [(1.0, "the compiled model")]
    if result.facts.baseline == LOSSLESS and result.facts.softmax_ratio is not None:
        gain = result.facts.softmax_ratio.median
        marks.append((gain, "lossless: exact softmax by the kernels"))
    data += [
        {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": [x],
            "y": [0],
            "marker": {"symbol": "diamond", "size": 10, "color": GREY},
            "hovertemplate": f"{name}: {x:.2f}x<extra></extra>",
        }
        for x, name in marks
    ]
    lines = [_line("y", -100 * result.max_drop, RED, "allowed drop")]
    if result.facts.ceiling is not None:
        lines.append(_line("x", gain * result.facts.ceiling, GREY, "ceiling"))
    return {
        "data": data,
        "layout": {
            "height": 420,
            "margin": {"l": 55, "r": 15, "t": 15, "b": 50},
            "xaxis": {"title": {"text": "speed-up over the compiled model"}},
            "yaxis": {"title": {"text": f"change of {result.metric}, points"}},
            "legend": {"orientation": "h", "y": -0.22},
            "shapes": [line["shape"] for line in lines],
            "annotations": [line["note"] for line in lines],
            "hovermode": "closest",
        },
    }


def _points(name: str, colour: str, rows: Sequence[PlanRow]) -> Figure:
    """A group of plans with their intervals; a click finds the plan by its hash."""
    pairs = [(r, r.latency.ratio, r.held_out) for r in rows if r.latency and r.held_out]
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": name,
        "x": [x.median for _, x, _ in pairs],
        "y": [-100 * h.drop for _, _, h in pairs],
        "text": [r.plan[:6] for r, _, _ in pairs],
        "textposition": "top center",
        "customdata": [r.plan for r, _, _ in pairs],
        "hovertext": [_told(r) for r, _, _ in pairs],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "marker": {"size": 11, "color": colour},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [x.high - x.median for _, x, _ in pairs],
            "arrayminus": [x.median - x.low for _, x, _ in pairs],
            "color": colour,
        },
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [0 for _ in pairs],
            "arrayminus": [100 * (h.upper - h.drop) for _, _, h in pairs],
            "color": colour,
        },
    }


def _told(row: PlanRow) -> str:
    """What hovering over a plan shows: its numbers, then the form of every layer."""
    assert row.latency is not None and row.held_out is not None
    lines = [
        f"<b>{row.plan}</b>",
        f"speed-up {row.latency.ratio}",
        f"drop {percent(row.held_out.drop)}, at most {percent(row.held_out.upper)}",
        *(forms_line(dict(part)) for part in _groups(list(row.forms.items()))),
    ]
    return "<br>".join(lines)


def _groups(items: Sequence[tuple[str, str]]) -> list[Sequence[tuple[str, str]]]:
    """Layers in lines of six."""
    return [items[i : i + 6] for i in range(0, len(items), 6)]


def _line(axis: str, at: float, colour: str, name: str) -> dict[str, Any]:
    """A line across the figure with its name."""
    other = "x" if axis == "y" else "y"
    whole = {f"{other}ref": "paper", f"{other}0": 0, f"{other}1": 1}
    place = {"x": 1, "xanchor": "right", "xref": "paper", "yref": "y", "y": at}
    if axis == "x":
        place = {"x": at, "xanchor": "right", "xref": "x", "yref": "paper", "y": 1}
    return {
        "shape": {
            "type": "line",
            f"{axis}0": at,
            f"{axis}1": at,
            **whole,
            "line": {"color": colour, "dash": "dash", "width": 1},
        },
        "note": {
            "text": name,
            "showarrow": False,
            "yanchor": "bottom" if axis == "y" else "top",
            "font": {"color": colour, "size": 11},
            **place,
        },
    }


def _heat(result: RunResult, choices: Sequence[str], *, saved: bool) -> Figure:
    """Layers by choices: how far a choice alone moves the outputs, or the time it saves there."""
    from attnpass.tuner.search import explain_choice

    savings, values, told = result.facts.saving_ms_per_site or {}, [], []
    for choice in choices:
        row, words = [], []
        for site in result.sites:
            why = {v.choice: v for v in explain_choice(result, site["name"])}.get(choice)
            damage = result.sensitivity.get(site["name"], {}).get(choice)
            shown = savings.get(choice) if saved and damage is not None else damage
            known = shown is not None and (saved or shown < REJECTED)
            row.append(shown if known else None)
            words.append("" if why is None else why.why)
        values.append(row)
        told.append(words)
    names = [site["name"] for site in result.sites]
    unit = " ms" if saved else ""
    return {
        "data": [
            {
                "type": "heatmap",
                "x": names,
                "y": list(choices),
                "z": values,
                "text": told,
                "colorscale": "Blues" if saved else "Reds",
                "hoverongaps": True,
                "hovertemplate": "%{x}<br>%{y}: %{z:.3g}" + unit + "<br>%{text}<extra></extra>",
                "colorbar": {"thickness": 10, "len": 0.9},
            }
        ],
        "layout": {
            "height": 150 + 32 * len(choices),
            "margin": {"l": 90, "r": 10, "t": 10, "b": 90},
            "xaxis": {"type": "category", "tickangle": -45, "automargin": True},
            "yaxis": {"type": "category", "automargin": True},
        },
    }
