"""Commands that show what the database holds: results, show, report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from attnpass.errors import OptionError, StoreError
from attnpass.tuner.cli.command import Answer, main, options
from attnpass.tuner.cli.lookup import plan_named, result_named

if TYPE_CHECKING:
    from attnpass.store import Store


@main.command()
@click.argument("run", required=False)
@click.option("--limit", default=50, show_default=True, help="How many rows, the first ones.")
@click.option("--task", default=None, help="Only of this task, by its import path or its name.")
@click.option("--status", default=None, help="Only runs that are running, done or interrupted.")
@click.option("--since", default=None, help="Only runs of this day or later, e.g. 2026-11-30.")
@click.option(
    "--sort",
    default="created",
    show_default=True,
    help="Runs by created (the newest first), speedup (the largest) or drop (the smallest).",
)
@click.option("--measurements", "listed", is_flag=True, help="List measurements instead of runs.")
@click.option("--kind", default=None, help="Only measurements of this kind, e.g. latency.")
@click.option("--outcome", default=None, help="Only measurements that ended so, e.g. ok.")
@click.option(
    "--why",
    metavar="KEY",
    default=None,
    help="All that a measurement or a run depends on, beside the newest other one of the same"
    " kind and subject: what differs made it a miss of the cache.",
)
@options
def results(
    run: str | None,
    limit: int,
    listed: bool,
    why: str | None,
    as_json: bool,
    db: str | None,
    **given: Any,
) -> Answer:
    """What the cache holds: the runs, one of them, the measurements, or why one was taken."""
    from attnpass.store import Store

    if limit < 1:
        raise OptionError(f"expected --limit >= 1, got {limit}")
    if (run is not None) + listed + (why is not None) > 1:
        raise OptionError("expected one of RUN, --measurements and --why KEY, got several")
    chosen = _chosen(given, listed=listed, filtered=run is None and why is None)
    with Store(db, read=True) as store:
        if why is not None:
            return _compared(store, why)
        if listed:
            return _measurements(store, limit, chosen)
        if run is None:
            return _runs(store, limit, chosen)
        stored = result_named(store, run)
    from attnpass.tuner.show import front_table

    return Answer(stored.as_dict(), lambda c: c.print(front_table(stored)))


SORTS = ("created", "speedup", "drop")
"""The orders of runs."""


def _chosen(given: Mapping[str, Any], *, listed: bool, filtered: bool) -> dict[str, Any]:
    """The options that choose among rows, checked.

    Raises:
        OptionError: one that does not belong to what is listed, or has no such value.
    """
    if given["sort"] not in SORTS:
        raise OptionError(f"expected --sort of {', '.join(SORTS)}, got {given['sort']!r}")
    found = {k: v for k, v in given.items() if v is not None and (k, v) != ("sort", "created")}
    known = {"task", "kind", "outcome"} if listed else {"task", "status", "since", "sort"}
    wrong = sorted(found.keys() - (known if filtered else set()))
    if wrong:
        place = "--measurements" if listed else "the list of runs" if filtered else "one of them"
        raise OptionError(f"expected no --{wrong[0]} with {place}; attnpass results --help")
    if "since" in found:
        try:
            then = datetime.fromisoformat(found["since"])
        except ValueError as error:
            raise OptionError(
                f"expected --since like 2026-11-30 or 2026-11-30T12:00, got {found['since']!r}"
            ) from error
        # without a zone it is UTC, as the rows are
        then = then.replace(tzinfo=UTC) if then.tzinfo is None else then.astimezone(UTC)
        found["since"] = then.strftime("%Y-%m-%dT%H:%M:%SZ")
    return found


def _runs(store: Store, limit: int, chosen: dict[str, Any]) -> Answer:
    from attnpass.tuner.show import runs_table

    sort = chosen.pop("sort", "created")
    total = store.count_runs(**chosen)
    runs = store.runs(limit if sort == "created" else -1, **chosen)
    if sort != "created":
        runs = sorted(runs, key=lambda run: rank(run, sort))[:limit]
    value = {"runs": runs, "total": total}
    return Answer(value, lambda c: c.print(runs_table(runs, total)))


def rank(run: Mapping[str, Any], by: str) -> float:
    """Where a run stands by its best plan's ``speedup`` or ``drop``; last where it has none."""
    from attnpass.tuner.search import read_result

    try:
        best = read_result(run["result"] or {}, run["id"]).best_row
    except StoreError:
        return math.inf
    if best is None or best.latency is None:
        return math.inf
    if by == "speedup":
        return -best.latency.ratio.median
    return math.inf if best.held_out is None else best.held_out.upper


def _measurements(store: Store, limit: int, chosen: dict[str, Any]) -> Answer:
    from attnpass.store import measurements
    from attnpass.tuner.show import measurements_table

    rows, total = measurements(store, limit, **chosen)
    value = {"measurements": rows, "total": total}
    return Answer(value, lambda c: c.print(measurements_table(rows, total)))


def _compared(store: Store, name: str) -> Answer:
    from attnpass.store import compare
    from attnpass.tuner.show import comparison_table

    found = compare(store, name)
    return Answer(found.as_dict(), lambda c: c.print(comparison_table(found)))


@main.command()
@click.argument("names", nargs=-1, required=True)
@options
def show(names: tuple[str, ...], as_json: bool, db: str | None) -> Answer:
    """One run or plan, per site; the difference of two plans."""
    from attnpass.store import Store
    from attnpass.tuner.search import read_result
    from attnpass.tuner.show import front_table, plan_table, sensitivity_table, verdict

    if len(names) > 2:
        raise OptionError(f"expected one run or plan, or two plans, got {len(names)} names")
    with Store(db, read=True) as store:
        run = store.run(names[0]) if len(names) == 1 else None
        if run is not None and run["result"]:
            result = read_result(run["result"], run["id"])

            def show_run(console: Console) -> None:
                console.print(sensitivity_table(result))
                console.print(front_table(result))
                console.print(verdict(result))

            return Answer(result.as_dict(), show_run)
        plans = [plan_named(store, name) for name in names]
    # of a large plan it takes seconds
    dicts = [plan.as_dict() for plan in plans] if as_json else [{}]
    value = dicts[0] if len(plans) == 1 else {"plans": dicts}
    return Answer(value, lambda c: c.print(plan_table(*plans)))


@main.command()
@click.argument("run", default="last")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("attnpass.html"),
    show_default=True,
    help="The file to write: .html (with the picture as .png beside it), or .md for Markdown.",
)
@click.option("--open", "opened", is_flag=True, help="Show it in the browser.")
@options
def report(run: str, out: Path, opened: bool, as_json: bool, db: str | None) -> Answer:
    """One file that says what to do next and shows every plan: HTML, or Markdown."""
    from attnpass.store import Store
    from attnpass.tuner.show import write_markdown, write_report

    write = write_markdown if out.suffix == ".md" else write_report
    with Store(db, read=True) as store:
        path = write(result_named(store, run), out)
    if opened:
        click.launch(str(path.resolve()))
    return Answer({"report": str(path)}, lambda c: c.print(f"report: {path}"))
