"""The command that describes a task without code: init."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from attnpass.errors import OptionError, OutputError
from attnpass.tuner.cli.command import Answer, main, options, task_argument


@main.command()
@task_argument()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("task.yaml"),
    show_default=True,
    help="The YAML file to write; it must not exist.",
)
@options
def init(task: str, load_timeout: float, out: Path, as_json: bool, db: str | None) -> Answer:
    """A YAML file that describes a task without code, with all that can be found out."""
    from attnpass.task import users_code
    from attnpass.tuner.measure import try_task
    from attnpass.tuner.tasks import SOURCES, as_yaml, complete, described

    found = described(task)
    if found is None:
        raise OptionError(
            f"expected a TASK {':, '.join(SOURCES)}: with a model, got {task}, which has code"
        )
    if out.exists():
        raise OutputError(f"expected a new file, got {out}, which exists; --out names another")
    with users_code(f"{task} to make a Task"):
        made, whole = complete(found)
    try_task(made)
    text = as_yaml(whole, out.parent)
    try:
        out.write_text(text)
    except OSError as error:
        raise OutputError(f"expected to write {out}, got {error.strerror}") from error

    def show(console: Console) -> None:
        console.print(text.rstrip(), markup=False)
        console.print(f"written to {out}; next: attnpass tune {out}", markup=False)

    return Answer({"file": str(out), **whole.as_dict()}, show)
