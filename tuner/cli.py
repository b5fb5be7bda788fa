"""The ``attnpass`` command: arguments and printing, no decisions.

Exit codes: 0 done, 1 a failure described in one line, 2 wrong usage. ``--json`` prints one JSON
object on stdout and nothing else.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from attnpass.errors import AttnpassError, OptionError, PlanError, StoreError

Command = Callable[..., Any]


def options(command: Command) -> Command:
    """Adds ``--json`` and ``--db``, and turns errors into one line and an exit code."""

    @click.option(
        "--json", "as_json", is_flag=True, help="One JSON object on stdout, nothing else."
    )
    @click.option(
        "--db",
        type=click.Path(),
        default=None,
        help="The SQLite file (default: $ATTNPASS_DB, else the user's cache folder).",
    )
    @wraps(command)
    def run(as_json: bool, db: str | None, **given: Any) -> None:
        level = logging.ERROR if as_json else logging.WARNING
        logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
        try:
            value, show, code = command(as_json=as_json, db=db, **given)
        except AttnpassError as error:
            _fail(str(error), as_json)
        except KeyboardInterrupt:
            _fail("interrupted; what was measured is kept, the same command goes on", as_json)
        if as_json:
            print(json.dumps(value, default=str))
        else:
            show(Console(width=None if sys.stdout.isatty() else 160, highlight=False))
        sys.exit(code)

    return run


def _fail(message: str, as_json: bool) -> None:
    print(f"attnpass: {message}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": message}))
    sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="attnpass")
def main() -> None:
    """Find softmax attention, rewrite chosen layers to cheaper forms, tune the choice.

    TASK is 'digits', 'file.py:factory' or 'package.module:factory'.
    """


@main.command()
@click.argument("task")
@options
def sites(task: str, as_json: bool, db: str | None) -> Any:
    """What attention was found, per form legal or why not."""
    from attnpass.batch import call
    from attnpass.capture import find_sites
    from attnpass.task import load_task

    loaded = load_task(task)
    report = call(partial(find_sites, loaded.model), loaded.example)

    def show(console: Console) -> None:
        console.print(report.table())
        for d in report.declined:
            console.print(f"declined {d.path}: {d} ({d.source})", markup=False)

    return report.as_dict(), show, 0 if report.sites else 1


@main.command()
@click.argument("task")
@options
def roundtrip(task: str, as_json: bool, db: str | None) -> Any:
    """Rewrite every site to softmax from what was extracted; compare with eager."""
    from attnpass.task import load_task
    from attnpass.tuner.check.roundtrip import roundtrip as check

    result = check(load_task(task))

    def show(console: Console) -> None:
        for name, error in result["sites"].items():
            console.print(f"{name:<40} relative difference {error:.2e}")
        console.print(
            f"all sites: {result['all']:.2e}, allowed {result['allowed']:.2e}:"
            f" {'equal' if result['equal'] else 'NOT EQUAL'}"
        )

    return result, show, 0 if result["equal"] else 1


@main.command()
@click.argument("task")
@click.option("--least", default=0.8, show_default=True, help="CKA from which a layer repeats.")
@click.option(
    "--picture",
    type=click.Path(path_type=Path),
    default=None,
    help="Write both matrices to this PNG.",
)
@options
def cka(task: str, least: float, picture: Path | None, as_json: bool, db: str | None) -> Any:
    """How alike the layers are (CKA), and which of them skipat might leave out."""
    from attnpass.task import load_task
    from attnpass.tuner.check.similarity import similarities
    from attnpass.tuner.show.pictures import cka_picture
    from attnpass.tuner.show.tables import cka_table

    if not -1 <= least <= 1:
        raise OptionError(f"expected --least from -1 to 1, got {least}")
    found = similarities(load_task(task), least)
    if picture is not None:
        found["picture"] = str(cka_picture(found, picture))

    def show(console: Console) -> None:
        for which in ("Z", "A"):
            console.print(cka_table(found, which))
        names = ", ".join(found["suggested"]) or "none"
        console.print(f"like the layer before by {least} or more: {names}", markup=False)

    return found, show, 0


@main.command()
@click.argument("task")
@click.option("--effort", default="quick", show_default=True, help="quick or full.")
@click.option(
    "--max-drop",
    default=0.01,
    show_default=True,
    type=float,
    help="Allowed drop of the mean score (0.01 is one point of 100).",
)
@click.option("--trials", default=0, type=int, help="Plans the search may measure (0: by effort).")
@click.option(
    "--forms",
    default="",
    help="Comma-separated choices to consider (default: all but skipat r=1, the dearest).",
)
@click.option("--seed", default=0, type=int)
@click.option("--inner", default="inductor", show_default=True, help="Inner compiler.")
@click.option("--mode", default=None, help="Inductor's mode, e.g. max-autotune.")
@click.option("--timeout", default=900.0, help="Seconds per compile-and-time request.")
@click.option("--refresh", is_flag=True, help="Measure again what is stored.")
@click.option(
    "--recover",
    default="calibrate",
    show_default=True,
    help="How converted layers regain accuracy: calibrate, or distil (no labels needed).",
)
@click.option(
    "--recover-budget",
    default="5m",
    show_default=True,
    help="Time that distilling may take in all, e.g. 90s, 5m, 1h.",
)
@click.option(
    "--recover-rank",
    default=None,
    type=int,
    help="Rank of the changes to q, k, v, o weights (default: full; 0: none).",
)
@click.option("--dry-run", is_flag=True, help="Show what would be searched; measure nothing.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder for the plan and the picture (default: attnpass-RUN).",
)
@options
def tune(
    task: str,
    forms: str,
    dry_run: bool,
    out: Path | None,
    recover_budget: str,
    as_json: bool,
    db: str | None,
    **given: Any,
) -> Any:
    """Search for plans; measured accuracy against measured latency."""
    from attnpass.store import Store
    from attnpass.tuner.progress import Voice
    from attnpass.tuner.search.run import Run
    from attnpass.tuner.search.settings import USUAL, Settings

    chosen = tuple(f.strip() for f in forms.split(",") if f.strip()) or USUAL
    budget = seconds(recover_budget, "--recover-budget")
    settings = Settings(task=task, forms=chosen, recover_budget=budget, **given)
    voice = Voice(quiet=as_json)
    with Store(db) as store:
        run = Run(settings, store, voice)
        if dry_run:
            return run.outline(), lambda c: c.print_json(data=run.outline()), 0
        folder = _writable(out or Path(f"attnpass-{run.id}"))
        if not as_json:
            voice.say(run.table())
        result = run.execute()
        result["files"] = _files(result, store, folder)
    failed = result["status"] != "done"

    def show(console: Console) -> None:
        from attnpass.tuner.show import tables as tables

        if result["facts"].get("saving_ms_per_site"):
            console.print(tables.sensitivity_table(result))
        console.print(tables.front_table(result))
        console.print(tables.verdict(result), style="bold", markup=False)
        for name, path in result["files"].items():
            console.print(f"{name}: {path}", markup=False)
        if "plan" in result["files"]:
            console.print(
                'use it:  fast = torch.compile(model, backend="attnpass",'
                f' options={{"plan": "{result["files"]["plan"]}"}})',
                markup=False,
            )

    return result, show, 1 if failed else 0


def seconds(text: str, option: str) -> float:
    """``90``, ``90s``, ``5m`` or ``1h`` as seconds.

    Raises:
        OptionError: something else.
    """
    number, unit = (text[:-1], text[-1:]) if text[-1:] in "smh" else (text, "s")
    try:
        return float(number) * {"s": 1, "m": 60, "h": 3600}[unit]
    except ValueError as error:
        raise OptionError(f"expected {option} like 90s, 5m or 1h, got {text!r}") from error


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".attnpass"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise PlanError(
            f"expected to write into {folder}, got {error.strerror};"
            " choose another folder with --out"
        ) from error
    return folder


def _files(result: dict[str, Any], store: Any, folder: Path) -> dict[str, str]:
    """Write the best plan and the picture; returns their paths."""
    from attnpass.errors import MissingDependencyError
    from attnpass.tuner.show import pictures

    files = {}
    if result["best"]:
        plan = store.plan(result["best"])
        files["plan"] = str(plan.save(folder / "plan.json"))
    if result["front"] and "ceiling" in result["facts"]:
        try:
            files["picture"] = str(pictures.picture(result, folder / "front.png"))
        except MissingDependencyError as error:
            files["picture"] = f"none: {error}"
    return files


@main.command()
@click.argument("run", required=False)
@options
def results(run: str | None, as_json: bool, db: str | None) -> Any:
    """What the cache holds: all runs, or one."""
    from attnpass.store import Store
    from attnpass.tuner.show import tables as tables

    with Store(db) as store:
        if run is None:
            found = store.runs()
            return {"runs": found}, lambda c: c.print(tables.runs_table(found)), 0
        one = _run(store, run)
    return one, lambda c: c.print(tables.front_table(one)), 0


def _run(store: Any, name: str) -> dict[str, Any]:
    found = store.run(name)
    if found is None:
        raise StoreError(
            f"expected a run in {store.path}, got {name!r}; attnpass results lists them"
        )
    if not found["result"]:
        raise StoreError(
            f"expected a finished run, got {found['id']} which is {found['status']};"
            " run the same tune command again to go on"
        )
    return found["result"]  # type: ignore[no-any-return]


def _plan(store: Any, name: str) -> Any:
    """The plan of a file, of a hash in the store, or the best one of a run.

    Raises:
        PlanError: none of them.
    """
    from attnpass.plan import Plan

    if Path(name).suffix == ".json":
        return Plan.load(name)
    found = store.plan(name) if name not in ("", "last") else None
    if found is not None:
        return found
    run = store.run(name)
    best = (run or {}).get("result", {}).get("best")
    if run is not None and not best:
        raise PlanError(f"expected a run with a proven plan, got {run['id']} without one")
    if best is None:
        raise PlanError(
            f"expected a plan file, a plan or a run of {store.path}, got {name!r};"
            " attnpass results lists them"
        )
    return store.plan(best)


@main.command()
@click.argument("task", required=False)
@click.option("--shape", default=None, help="B,H,T,S,d instead of a task's shapes.")
@click.option("--dtype", default="float32", show_default=True, help="With --shape.")
@click.option("--h", default="sigmoid", show_default=True, help="With --shape: the function.")
@click.option("--causal", is_flag=True, help="With --shape.")
@click.option("--mask", default="none", show_default=True, help="With --shape: columns or rows.")
@click.option("--device", default="cpu", show_default=True, help="With --shape: cpu or cuda.")
@click.option("--backward", is_flag=True, help="Tune forward and backward together.")
@click.option("--trials", default=24, show_default=True, help="Tiles measured per shape.")
@click.option("--seed", default=0, type=int)
@click.option("--refresh", is_flag=True, help="Measure again what is stored.")
@options
def tiles(
    task: str | None,
    shape: str | None,
    backward: bool,
    trials: int,
    seed: int,
    refresh: bool,
    as_json: bool,
    db: str | None,
    **call: Any,
) -> Any:
    """Tile sizes for a task's attention shapes, or one shape, on this device."""
    from dataclasses import replace

    from attnpass.store import Store
    from attnpass.task import load_task
    from attnpass.tuner.progress import Voice
    from attnpass.tuner.show.tables import tile_table
    from attnpass.tuner.tiles.attention_call import Shape, shapes_of
    from attnpass.tuner.tiles.study import tune

    if (task is None) == (shape is None):
        raise OptionError("expected either TASK or --shape B,H,T,S,d, got both or neither")
    if trials < 1:
        raise OptionError(f"expected --trials >= 1, got {trials}")
    shapes = [Shape.parse(shape, **call)] if shape else shapes_of(load_task(task or ""))
    shapes = [replace(s, direction="backward" if backward else "forward") for s in shapes]
    with Store(db) as store:
        rows = tune(shapes, store, Voice(as_json), trials=trials, seed=seed, refresh=refresh)
    return {"tiles": rows}, lambda c: c.print(tile_table(rows)), 0


@main.command()
@click.argument("names", nargs=-1, required=True)
@options
def show(names: tuple[str, ...], as_json: bool, db: str | None) -> Any:
    """One run or plan, per site; the difference of two plans."""
    from attnpass.store import Store
    from attnpass.tuner.show import tables as tables

    with Store(db) as store:
        run = store.run(names[0]) if len(names) == 1 else None
        if run is not None and run["result"]:
            result = run["result"]

            def both(console: Console) -> None:
                console.print(tables.sensitivity_table(result))
                console.print(tables.front_table(result))
                console.print(tables.verdict(result), markup=False)

            return result, both, 0
        plans = [_plan(store, name) for name in names[:2]]
    value = plans[0].as_dict() if len(plans) == 1 else {"plans": [p.as_dict() for p in plans]}
    return value, lambda c: c.print(tables.plan_table(*plans)), 0


@main.command()
@click.argument("run", default="last")
@click.option("--out", type=click.Path(path_type=Path), default=Path("attnpass.html"))
@options
def report(run: str, out: Path, as_json: bool, db: str | None) -> Any:
    """One HTML file with tables and picture (and the picture as PNG)."""
    from attnpass.store import Store
    from attnpass.tuner.show.html import report as write

    with Store(db) as store:
        path = write(_run(store, run), out)
    return {"report": str(path)}, lambda c: c.print(f"report: {path}", markup=False), 0


@main.command()
@click.argument("name")
@options
def pin(name: str, as_json: bool, db: str | None) -> Any:
    """Make torch.compile(model, backend="attnpass") apply this plan to its model."""
    from attnpass.store import Store

    with Store(db) as store:
        plan = _plan(store, name)
        store.pin(plan)
    return {"pinned": plan.hash}, lambda c: c.print(f"pinned {plan.hash}"), 0


@main.command()
@click.argument("name")
@options
def unpin(name: str, as_json: bool, db: str | None) -> Any:
    """Undo pin."""
    from attnpass.store import Store

    with Store(db) as store:
        plan = _plan(store, name)
        if not store.unpin(plan):
            raise PlanError(f"expected a pinned plan, got {plan.hash} which is not pinned")
    return {"unpinned": plan.hash}, lambda c: c.print(f"unpinned {plan.hash}"), 0


@main.command("export")
@click.argument("name")
@click.argument("path", type=click.Path(path_type=Path))
@options
def export_(name: str, path: Path, as_json: bool, db: str | None) -> Any:
    """Write a plan of the cache, or a run's best, to PATH (JSON and safetensors)."""
    import torch

    from attnpass.environment import kernel_context
    from attnpass.store import Store

    with Store(db) as store:
        plan = _plan(store, name)
        context = kernel_context("cuda" if torch.cuda.is_available() else "cpu")
        if tiles := store.tiles(context):
            plan.add_tiles(context, tiles)
    written = plan.save(path)
    return {"plan": str(written)}, lambda c: c.print(f"plan: {written}", markup=False), 0


@main.command("import")
@click.argument("path", type=click.Path(path_type=Path))
@options
def import_(path: Path, as_json: bool, db: str | None) -> Any:
    """Store a plan file in the cache."""
    from attnpass.plan import Plan
    from attnpass.store import Store

    with Store(db) as store:
        name = store.save_plan(Plan.load(path))
    return {"plan": name}, lambda c: c.print(f"stored {name}"), 0


@main.command()
@click.argument("name")
@click.argument("task")
@options
def verify(name: str, task: str, as_json: bool, db: str | None) -> Any:
    """Check a plan against a task's model: fits, is legal, and what it scores here."""
    from attnpass.store import Store
    from attnpass.task import load_task
    from attnpass.tuner.check.verify import verify as check

    with Store(db) as store:
        plan = _plan(store, name)
    result = check(plan, load_task(task))

    def show(console: Console) -> None:
        for line in result["problems"]:
            console.print(f"[red]{line}[/]")
        console.print(
            f"plan {plan.hash}: {len(result['rewritten'])} sites rewritten, score"
            f" {result['score']:.4f}, unchanged model {result['baseline']:.4f} on"
            f" {result['items']} items"
        )

    return result, show, 1 if result["problems"] else 0


@main.command()
@options
def doctor(as_json: bool, db: str | None) -> Any:
    """The environment, what is missing, and how to get it."""
    from attnpass.tuner.check.doctor import doctor as look

    rows = look(db)

    def show(console: Console) -> None:
        for row in rows:
            mark = "[green]ok[/]  " if row["ok"] else "[yellow]miss[/]"
            console.print(
                f"{mark} {row['what']:<22} {row['found']}"
                + ("" if row["ok"] else f"  ({row['cure']})")
            )

    needed = all(r["ok"] for r in rows if r["needed"])
    return {"checks": rows}, show, 0 if needed else 1


if __name__ == "__main__":
    main()
