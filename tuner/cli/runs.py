"""Commands that show what the database holds: results, show, report."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from attnpass.tuner.cli.command import Answer, main, options
from attnpass.tuner.cli.lookup import plan_named, result_named


@main.command()
@click.argument("run", required=False)
@options
def results(run: str | None, as_json: bool, db: str | None) -> Answer:
    """What the cache holds: all runs, or one."""
    from attnpass.store import Store
    from attnpass.tuner.search import RunResult
    from attnpass.tuner.show import front_table, runs_table

    with Store(db) as store:
        if run is None:
            runs = store.runs()
            return Answer({"runs": runs}, lambda c: c.print(runs_table(runs)))
        stored = result_named(store, run)
    return Answer(stored, lambda c: c.print(front_table(RunResult.from_dict(stored))))


@main.command()
@click.argument("names", nargs=-1, required=True)
@options
def show(names: tuple[str, ...], as_json: bool, db: str | None) -> Answer:
    """One run or plan, per site; the difference of two plans."""
    from attnpass.store import Store
    from attnpass.tuner.search import RunResult
    from attnpass.tuner.show import front_table, plan_table, sensitivity_table, verdict

    with Store(db) as store:
        run = store.run(names[0]) if len(names) == 1 else None
        if run is not None and run["result"]:
            result = RunResult.from_dict(run["result"])

            def show_run(console: Console) -> None:
                console.print(sensitivity_table(result))
                console.print(front_table(result))
                console.print(verdict(result))

            return Answer(run["result"], show_run)
        plans = [plan_named(store, name) for name in names[:2]]
    value = plans[0].as_dict() if len(plans) == 1 else {"plans": [p.as_dict() for p in plans]}
    return Answer(value, lambda c: c.print(plan_table(*plans)))


@main.command()
@click.argument("run", default="last")
@click.option("--out", type=click.Path(path_type=Path), default=Path("attnpass.html"))
@options
def report(run: str, out: Path, as_json: bool, db: str | None) -> Answer:
    """One HTML file with tables and picture (and the picture as PNG)."""
    from attnpass.store import Store
    from attnpass.tuner.search import RunResult
    from attnpass.tuner.show import write_report

    with Store(db) as store:
        path = write_report(RunResult.from_dict(result_named(store, run)), out)
    return Answer({"report": str(path)}, lambda c: c.print(f"report: {path}"))
