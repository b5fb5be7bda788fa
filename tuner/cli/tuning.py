"""The command that searches for plans: tune."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from attnpass.errors import MissingDependencyError, OptionError, OutputError
from attnpass.tuner.cli.command import Answer, main, options, path_option, task_argument

if TYPE_CHECKING:
    from attnpass.store import Store
    from attnpass.tuner.search import RunResult


@main.command()
@task_argument()
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
    help="Comma-separated choices: sigmoid, relu, gelu, 'relu alpha=0.5', hydra, 'skipat r=1"
    " kernel=5', or the groups usual, pointwise, skipat, all; softmax alone converts nothing"
    " (default: by effort).",
)
@click.option(
    "--objective",
    default="inference",
    show_default=True,
    help="What is timed: inference, or train (a call with its backward).",
)
@click.option("--max-ms", default=0.0, help="Most milliseconds of a call (0: any).")
@click.option("--max-p95-ms", default=0.0, help="Most milliseconds of 95 % of the calls.")
@click.option("--max-memory-mb", default=0.0, help="Most MiB that a call may take at its peak.")
@click.option(
    "--budget", default="0", help="Time that the run may take, e.g. 90s, 30m, 2h (0: any)."
)
@click.option("--tiles", default=None, type=int, help="Tiles tried per shape (0: none).")
@click.option(
    "--seed", default=0, show_default=True, type=int, help="Of everything that is drawn."
)
@click.option("--inner", default="inductor", show_default=True, help="Inner compiler.")
@click.option("--mode", default=None, help="Inductor's mode, e.g. max-autotune.")
@click.option("--timeout", default=900.0, help="Seconds per compile-and-time request.")
@click.option(
    "--refresh",
    is_flag=True,
    help="Measure again what is stored, and store it in the place of the old, in the same run.",
)
@click.option(
    "--no-cache",
    is_flag=True,
    help="Neither read nor write the database: tune in one of its own, which is then removed.",
)
@click.option(
    "--recover",
    default="calibrate",
    show_default=True,
    help="How converted layers regain accuracy: calibrate, or distil (no labels needed).",
)
@click.option(
    "--recover-budget",
    default="0",
    help="Time that distilling may take in all, e.g. 90s, 5m, 1h (0: half of --budget, else 5m).",
)
@click.option(
    "--recover-steps",
    default=0,
    help="Steps of distilling in all, in place of times: the same in every run.",
)
@click.option(
    "--recover-rank",
    default=None,
    type=int,
    help="Rank of the changes to q, k, v, o weights (default: full; 0: none).",
)
@click.option("--storage", default="", help="Also write an Optuna study there: a URL or a file.")
@click.option("--mlflow", default="", help="Also log the run to MLflow there: a URI.")
@click.option(
    "--devices",
    default="",
    help="Devices of this machine that time plans, e.g. cuda:0,cuda:1; with --ray: part of the"
    " description of the workers to use.",
)
@click.option("--ray", default="", help="Time plans on a Ray cluster: its address, auto or local.")
@click.option("--dry-run", is_flag=True, help="Show what would be searched; measure nothing.")
@path_option("--out", "Folder for the plan and the picture (default: attnpass-RUN).")
@options
def tune(
    task: str,
    forms: str,
    dry_run: bool,
    no_cache: bool,
    out: Path | None,
    budget: str,
    recover_budget: str,
    storage: str,
    mlflow: str,
    as_json: bool,
    db: str | None,
    **given: Any,
) -> Answer:
    """Search for plans; measured accuracy against measured latency."""
    from attnpass.tuner.progress import ProgressPrinter
    from attnpass.tuner.search import Settings, advise, execute, inspect_task, pool_of
    from attnpass.tuner.track import open_observers

    settings = Settings(
        task=task,
        forms=tuple(f.strip() for f in forms.split(",")) if forms else (),
        budget=seconds(budget, "--budget"),
        recover_budget=seconds(recover_budget, "--recover-budget"),
        **given,
    )
    progress = ProgressPrinter()
    with _opened(db, no_cache) as store:
        inspection = inspect_task(settings, store)
        if dry_run:
            outline = inspection.outline()
            return Answer(outline, lambda c: c.print_json(data=outline))
        warnings = list[str]()

        def warn(line: str) -> None:
            warnings.append(line)
            progress.say(line, style="yellow")

        with pool_of(inspection, store, progress.say) as pool:
            if pool is not None:
                inspection = inspection.measured_by(pool.device, store)
            folder = _writable(out or Path(f"attnpass-{inspection.run}"))
            if not as_json:
                progress.say(inspection.report().table())
            observers = open_observers(inspection, warn, storage=storage, mlflow=mlflow)
            result = execute(inspection, store, progress, observers, pool)
        files = _files(result, store, folder)
        observers.finished(result, files)
    value = {**result.as_dict(), "files": files, "advice": advise(result), "warnings": warnings}
    code = 0 if result.status == "done" else 1
    return Answer(value, lambda console: _show(console, result, files), code)


@contextmanager
def _opened(db: str | None, no_cache: bool) -> Iterator[Store]:
    """The user's database, or an empty one that is removed in the end."""
    from attnpass.store import Store

    if db is not None and no_cache:
        raise OptionError("expected either --db or --no-cache, got both")
    with ExitStack() as stack:
        if no_cache:
            folder = stack.enter_context(TemporaryDirectory(prefix="attnpass-"))
            db = str(Path(folder) / "attnpass.db")
        yield stack.enter_context(Store(db))


def _show(console: Console, result: RunResult, files: Mapping[str, str]) -> None:
    from attnpass.tuner.search import advise
    from attnpass.tuner.show import front_table, sensitivity_table, verdict

    if result.facts.saving_ms_per_site:
        console.print(sensitivity_table(result))
    console.print(front_table(result))
    console.print(verdict(result), style="bold")
    for line in advise(result):
        console.print(f"  {line}", markup=False)
    for name, path in files.items():
        console.print(f"{name}: {path}")
    if "plan" in files:
        console.print(
            'use it:  fast = torch.compile(model, backend="attnpass",'
            f' options={{"plan": "{files["plan"]}"}})',
            markup=False,
        )


def seconds(text: str, option: str) -> float:
    """``90``, ``90s``, ``5m``, ``1h`` or ``90d`` as seconds.

    Raises:
        OptionError: something else.
    """
    number, unit = (text[:-1], text[-1:]) if text[-1:] in "smhd" else (text, "s")
    try:
        return float(number) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
    except ValueError as error:
        raise OptionError(f"expected {option} like 90s, 5m or 1h, got {text!r}") from error


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".attnpass"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"expected to write into {folder}, got {error.strerror};"
            " choose another folder with --out"
        ) from error
    return folder


def _files(result: RunResult, store: Store, folder: Path) -> dict[str, str]:
    """Write the best plan and the picture; returns their paths."""
    from attnpass.tuner.cli.lookup import with_tiles
    from attnpass.tuner.show import draw_front

    files = {}
    plan = store.plan(result.best) if result.best else None
    if plan is not None:
        files["plan"] = str(with_tiles(plan, store).save(folder / "plan.json"))
    if result.front and result.facts.ceiling is not None:
        try:
            files["picture"] = str(draw_front(result, folder / "front.png"))
        except MissingDependencyError as error:
            files["picture"] = f"none: {error}"
    return files
