"""Commands that ask a finished run and measure nothing: solve, explain-choice, diff."""

from __future__ import annotations

import click

from attnpass.errors import OptionError, StoreError
from attnpass.tuner.cli.command import Answer, main, options
from attnpass.tuner.cli.lookup import plan_named, result_named


@main.command()
@click.argument("run", default="last")
@click.option("--max-drop", type=float, default=None, help="Another allowed drop.")
@click.option("--max-ms", default=0.0, help="Most milliseconds of a call (0: any).")
@click.option("--max-memory-mb", default=0.0, help="Most MiB of a call at its peak (0: any).")
@options
def solve(
    run: str,
    max_drop: float | None,
    max_ms: float,
    max_memory_mb: float,
    as_json: bool,
    db: str | None,
) -> Answer:
    """The plans of a run under other limits, nothing measured.

    Example: attnpass solve last --max-drop 0.02
    """
    from attnpass.store import Store
    from attnpass.tuner.search import solve as solved
    from attnpass.tuner.show import solution_table

    if max_drop is not None and not 0 <= max_drop < 1:
        raise OptionError(f"expected --max-drop in 0..1, got {max_drop:g}")
    with Store(db, read=True) as store:
        result = result_named(store, run)
    found = solved(result, max_drop=max_drop, max_ms=max_ms, max_memory_mb=max_memory_mb)
    return Answer(found.as_dict(), lambda c: c.print(solution_table(found)))


@main.command("explain-choice")
@click.argument("run")
@click.argument("site")
@options
def explain_choice(run: str, site: str, as_json: bool, db: str | None) -> Answer:
    """Why a site of a run got its form, and the others not.

    Example: attnpass explain-choice last blocks.3.attn
    """
    from attnpass.store import Store
    from attnpass.tuner.search import explain_choice as explained
    from attnpass.tuner.show import choice_table

    with Store(db, read=True) as store:
        result = result_named(store, run)
    rows = explained(result, site)
    value = {"run": result.run, "site": site, "choices": [x.as_dict() for x in rows]}
    return Answer(value, lambda c: c.print(choice_table(site, rows)))


@main.command()
@click.argument("a")
@click.argument("b")
@options
def diff(a: str, b: str, as_json: bool, db: str | None) -> Answer:
    """What two runs, or two plans, have otherwise.

    Example: attnpass diff plan.json last
    """
    from attnpass.store import Store
    from attnpass.tuner.search import differences
    from attnpass.tuner.show import difference_table, plan_table

    with Store(db, read=True) as store:
        try:
            runs = [result_named(store, name) for name in (a, b)]
        except StoreError:
            plans = [plan_named(store, name) for name in (a, b)]
            value = {"plans": [x.as_dict() for x in plans] if as_json else []}
            return Answer(value, lambda c: c.print(plan_table(*plans)))
    found, names = differences(*runs), [x.run for x in runs]
    return Answer({"runs": names, **found}, lambda c: c.print(difference_table(names, found)))
