"""Runs and tiles as tables for people; decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from attnpass.errors import StoreError
from attnpass.tuner.measure import Ratio
from attnpass.tuner.search import LOSSLESS, REJECTED, PlanRow, RunResult, form_of, read_result

if TYPE_CHECKING:
    from attnpass.tuner.check import Similarities

SHORT = {"softmax": ".", "sigmoid": "sig", "relu": "relu", "hydra": "hyd", "skipat": "skip"}
"""Abbreviations of the forms."""


def percent(x: float) -> str:
    """A share as per cent."""
    return f"{x:.2%}"


def forms_line(forms: Mapping[str, str]) -> str:
    """Choices per site in the model's order, abbreviated."""
    words = [
        " ".join([SHORT.get(c.split()[0], c.split()[0]), *c.split()[1:]]) for c in forms.values()
    ]
    return " | ".join(words)


def latency_cells(row: PlanRow) -> tuple[str, str]:
    """Milliseconds, with the 95th percentile, and the speed-up with its interval."""
    if row.latency is None:
        return "-", "-"
    late = "" if row.latency.p95_ms is None else f" ({row.latency.p95_ms:.2f})"
    return f"{row.latency.ms:.2f}{late}", interval(row.latency.ratio)


def memory_cell(row: PlanRow) -> str:
    """MiB that a call takes at most beyond what was held before."""
    peak = row.latency.peak_mib if row.latency is not None else None
    return "-" if peak is None else f"{peak:.0f}"


def interval(ratio: Ratio | None) -> str:
    """A ratio and its interval."""
    return "-" if ratio is None else f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def recovery_cell(row: PlanRow) -> str:
    """A plan's drop on the selection before and after global distillation, where it had one."""
    if row.recovery is None or row.selection is None:
        return "-"
    return f"{percent(row.recovery.drop_before)}, {percent(row.selection.drop)}"


def front_table(result: RunResult) -> Table:
    """The front: the baseline and every finalist, fastest first."""
    table = Table(
        title=f"front of plans ({result.task}, run {result.run}, allowed drop"
        f" {percent(result.max_drop)})",
        title_justify="left",
    )
    distilled = any(row.recovery for row in result.front)
    lossless = result.facts.baseline == LOSSLESS
    others = list(dict.fromkeys(name for row in result.front for name in row.others))
    late = any(row.latency and row.latency.p95_ms is not None for row in result.front)
    memory = any(row.latency and row.latency.peak_mib is not None for row in result.front)
    for column in (
        "plan",
        f"{result.metric} held out",
        "drop",
        "bound on drop",
        *(f"{name}: drop, bound" for name in others),
        "ms (95 %)" if late else "ms",
        *(["MiB"] if memory else []),
        "speed-up [95 %]",
        *(["over lossless"] if lossless else []),
        "form per layer (. is softmax)",
        *(["selection: drop before, after distillation"] if distilled else []),
    ):
        table.add_column(column)
    for cells in _baseline_rows(result):
        cells[4:4] = ["0, 0" for _ in others]
        if memory:
            cells.insert(5 + len(others), "-")
        table.add_row(*cells, *([""] if distilled else []))
    for row in result.front:
        cells = _front_cells(row, lossless, memory, others)
        cells += [recovery_cell(row)] if distilled else []
        table.add_row(*cells, style="bold green" if row.plan == result.best else None)
    told = []
    if result.slower:
        noise, count = percent(result.facts.noise), len(result.slower)
        told.append(f"{count} more were not faster than the noise ({noise}), or over a limit")
    if result.facts.cut:
        told.append(f"the time was over: {', '.join(result.facts.cut)}")
    table.caption = "; ".join(told) or None
    return table


def _baseline_rows(result: RunResult) -> list[list[str]]:
    """The first rows: the model as it is, and the lossless plan where that is faster."""
    facts = result.facts
    ms, score = (
        float("nan") if x is None else x for x in (facts.baseline_ms, facts.baseline_score)
    )
    softmax = forms_line({site["name"]: "softmax" for site in result.sites})
    what = "all items, random" if facts.random else "all items"
    same = [f"{score:.4f} ({what})", "0", "0"]
    if facts.baseline != LOSSLESS or facts.softmax_ratio is None:
        return [["baseline", *same, f"{ms:.2f}", "1", softmax]]
    gain = facts.softmax_ratio
    plain, exact = (
        (ms, ms / gain.median) if facts.finalists_floor is not None else (ms * gain.median, ms)
    )
    return [
        ["as it is", *same, f"{plain:.2f}", "1", "-", softmax],
        ["lossless", *same, f"{exact:.2f}", interval(gain), "1", softmax],
    ]


def _front_cells(row: PlanRow, lossless: bool, memory: bool, others: Sequence[str]) -> list[str]:
    """The row of one plan: other metrics, peak memory, speed-up over lossless where asked for."""
    judged = row.held_out
    proof = ["-", "-", "-"]
    if judged is not None:
        proof = [
            f"{judged.score:.4f} ({judged.items:.0f})",
            percent(judged.drop),
            f"{percent(judged.upper)} ({judged.confidence:.2%})",
        ]
    over = [interval(row.latency.over_lossless if row.latency else None)] if lossless else []
    ms, speed = latency_cells(row)
    peak = [memory_cell(row)] if memory else []
    more = [row.others.get(name) for name in others]
    proof += ["-" if x is None else f"{percent(x.drop)}, {percent(x.upper)}" for x in more]
    return [row.plan, *proof, ms, *peak, speed, *over, forms_line(row.forms)]


def sensitivity_table(result: RunResult) -> Table:
    """Per site the divergence that each choice causes, or why the choice is not there."""
    saving = result.facts.saving_ms_per_site or {}
    table = Table(
        title="per site: divergence of the output if only this site is converted",
        title_justify="left",
    )
    table.add_column("site")
    for choice, saved in saving.items():
        table.add_column(f"{choice} ({saved:+.2f} ms)")
    for site in result.sites:
        cells = []
        for choice in saving:
            no = site["legal"].get(form_of(choice)[0])
            value = result.sensitivity.get(site["name"], {}).get(choice)
            if value is None:
                why = "no time" if result.facts.was_cut(choice) else "no gain"
                cells.append(no["code"] if no else why)
            else:
                cells.append(f"{value:.2g}" if value < REJECTED else "rejected")
        table.add_row(site["name"], *cells)
    return table


def runs_table(runs: Sequence[Mapping[str, Any]], total: int) -> Table:
    """The newest of ``total`` runs of a store, each a row of its table with the JSON decoded."""
    newest = "" if len(runs) == total else f", the {len(runs)} newest"
    table = Table(title=f"{total} runs{newest}", title_justify="left")
    columns = ("run", "created", "name", "task", "status", "best plan", "speed-up")
    for column in (*columns, "drop, at most"):
        table.add_column(column)
    for run in runs:
        name = run.get("name") or "-"
        cells = [run["id"], run["created"], name, run["task"], run["status"]]
        table.add_row(*cells, *_outcome(run))
    return table


def _outcome(run: Mapping[str, Any]) -> tuple[str, str, str]:
    """The best plan of a run with its speed-up and its drop."""
    try:
        result = read_result(run["result"] or {}, run["id"])
    except StoreError:
        return "damaged", "-", "-"
    best = result.best_row
    speed = latency_cells(best)[1] if best else "-"
    drop = percent(best.held_out.upper) if best and best.held_out else "-"
    return result.best or "-", speed, drop


def tile_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One shape class a row: the tile, its speed-up over the default, and where it came from."""
    table = Table(title="tiles on this device", title_justify="left")
    for column in ("shape class (heads x T x S x d)", "tile", "ms", "over default [95 %]", "from"):
        table.add_column(column)
    for row in rows:
        tile, gain = row["tile"], row["gain"]
        name = "plain ATen, compiled"
        if tile["implementation"] == "fused":
            name = f"{tile['block_m']} rows x {tile['block_n']} columns, {tile['heads']} heads"
        told = f"{gain['median']:.3f} [{gain['low']:.3f}, {gain['high']:.3f}]"
        if tile == row["default"]:
            name, told = f"{name} (default)", "no gain found"
        table.add_row(row["class"], name, f"{row['ms']:.2f}", told, row["source"])
    return table


def cka_table(found: Similarities, which: str) -> Table:
    """CKA between layers: ``Z``, the blocks' outputs, or ``A``, the first token's attention."""
    name = {"Z": "block outputs", "A": "attention of the first token"}[which]
    matrix = found.outputs if which == "Z" else found.attention
    table = Table(title=f"CKA of {name} ({found.task})", title_justify="left")
    table.add_column("layer")
    for i in range(len(found.sites)):
        table.add_column(str(i), justify="right")
    for i, (site, row) in enumerate(zip(found.sites, matrix, strict=True)):
        table.add_row(f"{i} {site}", *("-" if x is None else f"{x:.2f}" for x in row))
    return table
