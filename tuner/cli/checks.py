"""Commands that look at a model, a plan or the machine: sites, roundtrip, cka, verify, doctor."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from attnpass.errors import OptionError
from attnpass.tuner.cli.command import Answer, main, options, path_option, task_argument


@main.command()
@task_argument()
@options
def sites(task: str, load_timeout: float, as_json: bool, db: str | None) -> Answer:
    """What attention was found, per form legal or why not."""
    from attnpass.batch import call
    from attnpass.capture import find_sites
    from attnpass.tuner.cli.lookup import task_named

    loaded = task_named(task, load_timeout)
    report = call(partial(find_sites, loaded.model), loaded.example)

    def show(console: Console) -> None:
        console.print(report.table())
        for d in report.declined:
            console.print(f"declined {d.path}: {d} ({d.source})")

    return Answer(report.as_dict(), show, 0 if report.sites else 1)


@main.command()
@task_argument()
@options
def roundtrip(task: str, load_timeout: float, as_json: bool, db: str | None) -> Answer:
    """Rewrite every site to softmax from what was extracted; compare with eager."""
    from attnpass.tuner.check import check_roundtrip
    from attnpass.tuner.cli.lookup import task_named

    result = check_roundtrip(task_named(task, load_timeout))

    def show(console: Console) -> None:
        for name, error in result.sites.items():
            console.print(f"{name:<40} relative difference {error:.2e}")
        console.print(
            f"all sites: {result.all:.2e}, allowed {result.allowed:.2e}:"
            f" {'equal' if result.equal else 'NOT EQUAL'}"
        )

    return Answer(result.as_dict(), show, 0 if result.equal else 1)


@main.command()
@task_argument()
@click.option("--least", default=0.8, show_default=True, help="CKA from which a layer repeats.")
@path_option("--picture", "Write both matrices to this PNG.")
@options
def cka(
    task: str,
    load_timeout: float,
    least: float,
    picture: Path | None,
    as_json: bool,
    db: str | None,
) -> Answer:
    """How alike the layers are (CKA), and which of them skipat might leave out."""
    from attnpass.tuner.check import similarities
    from attnpass.tuner.cli.lookup import task_named
    from attnpass.tuner.show import cka_table, draw_similarities

    if not -1 <= least <= 1:
        raise OptionError(f"expected --least from -1 to 1, got {least}")
    found = similarities(task_named(task, load_timeout), least)
    value = found.as_dict()
    if picture is not None:
        value["picture"] = str(draw_similarities(found, picture))

    def show(console: Console) -> None:
        for matrix in ("Z", "A"):
            console.print(cka_table(found, matrix))
        names = ", ".join(found.suggested) or "none"
        console.print(f"like the layer before by {least} or more: {names}")

    return Answer(value, show)


@main.command()
@click.argument("name")
@task_argument()
@options
def verify(name: str, task: str, load_timeout: float, as_json: bool, db: str | None) -> Answer:
    """Check a plan against a task's model: fits, is legal, and what it scores here."""
    from attnpass.store import Store
    from attnpass.tuner.check import verify_plan
    from attnpass.tuner.cli.lookup import plan_named, task_named

    with Store(db, read=True) as store:
        plan = plan_named(store, name)
    result = verify_plan(plan, task_named(task, load_timeout))

    def show(console: Console) -> None:
        for line in result.problems:
            console.print(line, style="red")
        console.print(
            f"plan {result.plan}: {len(result.rewritten)} sites rewritten, score"
            f" {result.score:.4f}, unchanged model {result.baseline:.4f} on"
            f" {result.items} items"
        )

    return Answer(result.as_dict(), show, 1 if result.problems else 0)


@main.command("serve-check")
@click.argument("name", metavar="PLAN")
@task_argument()
@click.option(
    "--slower",
    default=0.1,
    show_default=True,
    help="Share of the promised speed-up that may be missing.",
)
@click.option(
    "--max-drop", default=None, type=float, help="Allowed drop (default: what was proven)."
)
@click.option(
    "--rounds", default=30, show_default=True, type=click.IntRange(7), help="Interleaved calls."
)
@click.option("--inner", default="inductor", show_default=True, help="Inner compiler.")
@click.option("--mode", default=None, help="Inductor's mode.")
@options
def serve_check_(
    name: str,
    task: str,
    load_timeout: float,
    slower: float,
    max_drop: float | None,
    rounds: int,
    inner: str,
    mode: str | None,
    as_json: bool,
    db: str | None,
) -> Answer:
    """Measure a plan's latency, accuracy and outputs here; exit code 1 where a promise breaks."""
    from rich.table import Table

    from attnpass.store import Store
    from attnpass.tuner.check import serve_check
    from attnpass.tuner.cli.lookup import plan_named, task_named

    if not 0 <= slower < 1:
        raise OptionError(f"expected --slower from 0 to 1, got {slower}")
    with Store(db, read=True) as store:
        plan, tiles = plan_named(store, name), str(store.path)
    loaded = task_named(task, load_timeout)
    result = serve_check(
        plan,
        loaded,
        inner=inner,
        mode=mode,
        db=tiles,
        rounds=rounds,
        slower=slower,
        drop=max_drop,
    )

    def show(console: Console) -> None:
        for line in result.problems:
            console.print(line, style="red")
        table = Table("", "promised", "here", "")
        marks = {True: Text("kept", "green"), False: Text("BROKEN", "red"), None: Text("")}
        for row in result.rows:
            table.add_row(row.what, row.promised, row.found, marks[row.kept])
        if result.rows:
            console.print(table)
        for what, told in result.elsewhere.items():
            console.print(f"another {what}: {told}", markup=False)

    return Answer(result.as_dict(), show, 0 if result.kept else 1)


@main.command()
@options
def doctor(as_json: bool, db: str | None) -> Answer:
    """The environment, what is missing, and how to get it."""
    from attnpass.tuner.check import examine

    rows = examine(db)

    def show(console: Console) -> None:
        for row in rows:
            mark = Text("ok  ", "green") if row.ok else Text("miss", "yellow")
            cure = "" if row.ok else f"  ({row.cure})"
            console.print(mark, f"{row.what:<22} {row.found}{cure}")

    value = {"checks": [row.as_dict() for row in rows]}
    return Answer(value, show, 0 if all(r.ok for r in rows if r.needed) else 1)
