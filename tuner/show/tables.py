"""Results as tables for people; decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from attnpass.plan import Plan
from attnpass.tuner.search.settings import REJECTED

SHORT = {"softmax": ".", "sigmoid": "sig", "relu": "relu", "hydra": "hyd", "skipat": "skip"}


def percent(x: float) -> str:
    """A share as per cent."""
    return f"{x:.2%}"


def forms_line(forms: Mapping[str, str]) -> str:
    """Choices per site in the model's order, runs of the same abbreviated."""
    words = [
        " ".join([SHORT.get(c.split()[0], c.split()[0]), *c.split()[1:]]) for c in forms.values()
    ]
    return " | ".join(words)


def latency_cell(latency: Mapping[str, Any]) -> tuple[str, str]:
    """Milliseconds, and the speed-up with its interval."""
    r = latency.get("ratio")
    if not r:
        return "-", "-"
    return f"{latency['ms']:.2f}", f"{r['median']:.3f} [{r['low']:.3f}, {r['high']:.3f}]"


def front_table(result: Mapping[str, Any]) -> Table:
    """The front: the baseline and every finalist, fastest first."""
    facts, limit = result["facts"], result["settings"]["max_drop"]
    title = (
        f"front of plans ({result['task']}, run {result['run']}, allowed drop {percent(limit)})"
    )
    table = Table(title=title, title_justify="left")
    for column in (
        "plan",
        f"{result['metric']} held out",
        "drop",
        "bound on drop",
        "ms",
        "speed-up [95 %]",
        "form per layer (. is softmax)",
    ):
        table.add_column(column)
    base = f"{facts.get('baseline_ms', float('nan')):.2f}"
    cells = [
        "baseline",
        f"{facts.get('baseline_score', float('nan')):.4f} (all items)",
        "0",
        "0",
        base,
        "1",
        forms_line({s["name"]: "softmax" for s in result["sites"]}),
    ]
    distilled = any(row.get("recovery") for row in result["front"])
    if distilled:
        table.add_column("selection: drop before, after distillation")
    table.add_row(*cells, *([""] if distilled else []))
    for row in result["front"]:
        judged, chosen = row["held_out"], row["plan"] == result["best"]
        ms, speed = latency_cell(row["latency"])
        cells = [row["plan"], "-", "-", "-", ms, speed, forms_line(row["forms"])]
        if distilled:
            cells.append(recovery_cell(row))
        if judged:
            cells[1:4] = [
                f"{judged['score']:.4f} ({judged['items']:.0f})",
                percent(judged["drop"]),
                f"{percent(judged['upper'])} ({judged['confidence']:.2%})",
            ]
        table.add_row(*cells, style="bold green" if chosen else None)
    return table


def recovery_cell(row: Mapping[str, Any]) -> str:
    """A plan's drop on the selection before and after global distillation, where it had one."""
    if not row.get("recovery") or not row["selection"]:
        return "-"
    return f"{percent(row['recovery']['drop_before'])}, {percent(row['selection']['drop'])}"


def verdict(result: Mapping[str, Any]) -> str:
    """What the run proved, or that there is no gain, and what a larger drop would allow."""
    limit = percent(result["settings"]["max_drop"])
    facts = result["facts"]
    for row in result["front"]:
        if row["plan"] == result["best"]:
            r = row["latency"]["ratio"]
            return (
                f"plan {row['plan']}: {r['median']:.3f}x [{r['low']:.3f}, {r['high']:.3f}] over"
                f" the compiled baseline, drop {percent(row['held_out']['drop'])}, proven at"
                f" most {percent(row['held_out']['upper'])} on {row['held_out']['items']:.0f}"
                " held-out items"
            )
    if result["status"] == "interrupted":
        return "interrupted; what was measured is kept, the same command goes on"
    noise = percent(facts.get("finalists_floor", facts.get("floor", 0.0)))
    none = f"no plan is both proven within a drop of {limit} and faster than the noise ({noise})"
    if not result.get("nearest"):
        return f"{none}: no gain"
    some = [
        f"about {facts['baseline_ms'] / row['estimate_ms']:.2f}x, drop"
        f" {percent(row['selection']['drop'])}, at most {percent(row['selection']['upper'])}"
        f" ({forms_line(row['forms'])})"
        for row in result["nearest"]
    ]
    return "\n".join(
        [f"{none}: no gain; nearest, on the selection (a larger --max-drop starts there):", *some]
    )


def plan_table(plan: Plan, other: Plan | None = None) -> Table:
    """A plan per site, or the difference of two."""
    table = Table(
        title=f"plan {plan.hash}" + (f" against {other.hash}" if other else ""),
        title_justify="left",
    )
    changes = ["weights changed"] if plan.deltas and other is None else []
    theirs_too = ["other form", "options"] if other else []
    for column in ("site", "form", "options", *changes, *theirs_too):
        table.add_column(column)
    for name, entry in plan.sites.items():
        cells = [name, entry.form, _options(entry.options)]
        if changes:
            cells.append(_deltas(plan, name))
        if other is not None:
            theirs = other.sites.get(name)
            if theirs is not None and (theirs.form, theirs.options) == (entry.form, entry.options):
                continue
            cells += [theirs.form if theirs else "-", _options(theirs.options) if theirs else "-"]
        table.add_row(*cells)
    return table


def _deltas(plan: Plan, site: str) -> str:
    """How many weights a site's deltas change, and with how many numbers."""
    deltas = plan.deltas.get(site, {}).values()
    numbers = sum(p.numel() for d in deltas for p in d.parameters())
    return f"{len(deltas)} ({numbers:,} numbers)" if deltas else "-"


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in options.items())


def runs_table(runs: list[dict[str, Any]]) -> Table:
    """All runs of a store."""
    table = Table(title=f"{len(runs)} runs", title_justify="left")
    for column in ("run", "created", "task", "status", "best plan", "speed-up", "drop, at most"):
        table.add_column(column)
    for run in runs:
        result = run["result"] or {}
        best = next((r for r in result.get("front", []) if r["plan"] == result.get("best")), None)
        speed = latency_cell(best["latency"])[1] if best else "-"
        drop = percent(best["held_out"]["upper"]) if best else "-"
        table.add_row(
            run["id"],
            run["created"],
            run["task"],
            run["status"],
            result.get("best") or "-",
            speed,
            drop,
        )
    return table


def sensitivity_table(result: Mapping[str, Any]) -> Table:
    """Per site what each choice does to the output, and why the others are not there."""
    saving = result["facts"].get("saving_ms_per_site", {})
    table = Table(
        title="per site: divergence of the output if only this site is converted",
        title_justify="left",
    )
    table.add_column("site")
    for choice, saved in saving.items():
        table.add_column(f"{choice} ({saved:+.2f} ms)")
    for site in result["sites"]:
        cells = []
        for choice in saving:
            no = site["legal"].get(choice.split()[0])
            value = result["sensitivity"].get(site["name"], {}).get(choice)
            if value is None:
                cells.append(no["code"] if no else "no gain")
            else:
                cells.append(f"{value:.2g}" if value < REJECTED else "rejected")
        table.add_row(site["name"], *cells)
    return table


def cka_table(found: Mapping[str, Any], which: str) -> Table:
    """CKA between layers: ``Z``, the blocks' outputs, or ``A``, the first token's attention."""
    what = {"Z": "block outputs", "A": "attention of the first token"}[which]
    table = Table(title=f"CKA of {what} ({found['task']})", title_justify="left")
    table.add_column("layer")
    for i in range(len(found["sites"])):
        table.add_column(str(i), justify="right")
    for i, (name, row) in enumerate(zip(found["sites"], found[which], strict=True)):
        table.add_row(f"{i} {name}", *("-" if x is None else f"{x:.2f}" for x in row))
    return table


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
