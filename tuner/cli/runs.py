"""Commands that show what the database holds: results, show, report."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from attnpass.errors import OptionError
from attnpass.tuner.cli.command import Answer, main, options
from attnpass.tuner.cli.lookup import plan_named, result_named


@main.command()
@click.argument("run", required=False)
@click.option("--limit", default=50, show_default=True, help="How many runs, the newest first.")
@options
def results(run: str | None, limit: int, as_json: bool, db: str | None) -> Answer:
    """What the cache holds: the runs, or one of them."""
    from attnpass.store import Store
    from attnpass.tuner.show import front_table, runs_table

    if limit < 1:
        raise OptionError(f"expected --limit >= 1, got {limit}")

    with Store(db, read=True) as store:
        if run is None:
            runs, total = store.runs(limit), store.count_runs()
            value = {"runs": runs, "total": total}
            return Answer(value, lambda c: c.print(runs_table(runs, total)))
        stored = result_named(store, run)
    return Answer(stored.as_dict(), lambda c: c.print(front_table(stored)))


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
@click.option("--out", type=click.Path(path_type=Path), default=Path("attnpass.html"))
@options
def report(run: str, out: Path, as_json: bool, db: str | None) -> Answer:
    """One HTML file with tables and picture (and the picture as PNG)."""
    from attnpass.store import Store
    from attnpass.tuner.show import write_report

    with Store(db, read=True) as store:
        path = write_report(result_named(store, run), out)
    return Answer({"report": str(path)}, lambda c: c.print(f"report: {path}"))
