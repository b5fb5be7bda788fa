"""Commands that move plans: pin, unpin, export, import."""

from __future__ import annotations

from pathlib import Path

import click

from attnpass.errors import OptionError, PlanError
from attnpass.tuner.cli.command import Answer, main, options, path_option
from attnpass.tuner.cli.lookup import plan_named, result_named, with_tiles


@main.command()
@click.argument("name")
@options
def pin(name: str, as_json: bool, db: str | None) -> Answer:
    """Make torch.compile(model, backend="attnpass") apply this plan to its model."""
    from attnpass.store import Store

    with Store(db) as store:
        plan = plan_named(store, name)
        store.pin(plan)
    return Answer({"pinned": plan.hash}, lambda c: c.print(f"pinned {plan.hash}"))


@main.command()
@click.argument("name")
@options
def unpin(name: str, as_json: bool, db: str | None) -> Answer:
    """Undo pin."""
    from attnpass.store import Store

    with Store(db) as store:
        plan = plan_named(store, name)
        if not store.unpin(plan):
            raise PlanError(f"expected a pinned plan, got {plan.hash} which is not pinned")
    return Answer({"unpinned": plan.hash}, lambda c: c.print(f"unpinned {plan.hash}"))


@main.command("export")
@click.argument("name")
@click.argument("path", type=click.Path(path_type=Path), required=False)
@path_option("--plans", "Write all judged plans of a run to this .csv or .json instead.")
@options
def export_(
    name: str, path: Path | None, plans: Path | None, as_json: bool, db: str | None
) -> Answer:
    """Write a plan of the cache, or a run's best, to PATH (JSON and safetensors)."""
    if (path is None) == (plans is None):
        got = "neither" if path is None else "both"
        raise OptionError(f"expected either PATH or --plans FILE, got {got}")
    if plans is not None:
        return _table(name, plans, db)
    assert path is not None
    from attnpass.store import Store

    with Store(db, read=True) as store:
        plan = with_tiles(plan_named(store, name), store)
    written = plan.save(path)
    return Answer({"plan": str(written)}, lambda c: c.print(f"plan: {written}"))


def _table(name: str, path: Path, db: str | None) -> Answer:
    """Write a run's judged plans."""
    from attnpass.store import Store
    from attnpass.tuner.track import write_table

    with Store(db, read=True) as store:
        result = result_named(store, name)
    value = {"plans": str(write_table(result, path)), "rows": len(result.scored)}
    return Answer(value, lambda c: c.print(f"{value['rows']} plans: {path}"))


@main.command("import")
@click.argument("path", type=click.Path(path_type=Path))
@options
def import_(path: Path, as_json: bool, db: str | None) -> Answer:
    """Store a plan file in the cache."""
    from attnpass.plan import Plan
    from attnpass.store import Store

    with Store(db) as store:
        name = store.save_plan(Plan.load(path))
    return Answer({"plan": name}, lambda c: c.print(f"stored {name}"))
