"""The shared part of all commands: the group, ``--json`` and ``--db``, printing, exit codes.

Exit codes: 0 done, 1 a failure described in one line, 2 wrong usage. ``--json`` prints one JSON
object on stdout and nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console

from attnpass.console import PlainConsole
from attnpass.errors import AttnpassError, OptionError
from attnpass.text import one_line
from attnpass.tuner.cli.examples import EXAMPLES, FIRST

INTERRUPTED = "interrupted; what was measured is kept, the same command goes on"


@dataclass(frozen=True)
class Answer:
    """The outcome of a command.

    Attributes:
        value: the JSON object. show: prints the same for people. code: the exit code.
    """

    value: Mapping[str, Any]
    show: Callable[[Console], None]
    code: int = 0


Command = Callable[..., Answer]


def options(command: Command) -> Callable[..., None]:
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
        logging.getLogger("attnpass.tasks").setLevel(logging.INFO)  # how far loading is
        for stream in (sys.stdout, sys.stderr):
            # a name may hold what the terminal's encoding lacks
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            with stopped_by_signals(), only_answers(as_json):
                answer = command(as_json=as_json, db=db, **given)
        except AttnpassError as error:
            _fail(str(error), as_json)
        except KeyboardInterrupt:
            _fail(INTERRUPTED, as_json)
        except (Exception, SystemExit) as error:
            _fail(_unexpected(error), as_json)
        _print(answer, as_json)
        sys.exit(answer.code)

    return run


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP do what Ctrl-C does; where they are ignored, they stay so."""

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = {}
    with suppress(ValueError):  # signals belong to the main thread
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def only_answers(as_json: bool) -> Iterator[None]:
    """Inside, with ``--json``, all that a task and its processes print goes to stderr."""
    if not as_json:
        yield
        return
    kept = None
    with suppress(OSError, ValueError, AttributeError):  # a test's stdout has no descriptor
        if sys.stdout.fileno() == 1:
            kept = os.dup(1)
            os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)


def _unexpected(error: BaseException) -> str:
    """One line on an error that is not ours, with the place that raised it."""
    if os.environ.get("ATTNPASS_TRACE") == "1":
        traceback.print_exception(error, file=sys.stderr)
    error = getattr(error, "inner_exception", error)
    at = (traceback.extract_tb(error.__traceback__) or [None])[-1]
    place = f" at {at.filename}:{at.lineno}" if at else ""
    lines = [x for x in str(error).splitlines() if x.strip()] or ["no message"]
    return (
        f"expected the command to end, got {type(error).__name__}{place}: {lines[0]};"
        " ATTNPASS_TRACE=1 shows the way there"
    )


def _print(answer: Answer, as_json: bool) -> None:
    """Print an answer; a reader that is gone wants no more, any other fault is said."""
    try:
        if sys.stdout is None:
            raise OSError("a closed one")
        if as_json:
            print(json.dumps(answer.value, default=str))
        else:
            answer.show(PlainConsole(width=None if sys.stdout.isatty() else 160))
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
        sys.exit(1)
    except OSError as error:
        _discard_stdout()
        why = error.strerror or error
        _fail(f"expected to print the answer on stdout, got: {why}; what was done is kept", False)


def _discard_stdout() -> None:
    """Let the rest of stdout go nowhere: Python writes it once more when it ends."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, as_json: bool) -> NoReturn:
    message = one_line(message)
    with suppress(OSError, AttributeError):  # nobody listens
        sys.stderr.write(f"attnpass: {message}\n")
        sys.stderr.flush()
    if as_json:
        with suppress(OSError, AttributeError):  # it was said on stderr
            sys.stdout.write(json.dumps({"error": message}) + "\n")
            sys.stdout.flush()
    sys.exit(1)


def path_option(name: str, help_: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """An option that takes a path, None where it is not given."""
    return click.option(name, type=click.Path(path_type=Path), default=None, help=help_)


DESCRIPTION = {
    "--data": "A table (.jsonl, .csv, .parquet), a .txt file, a folder of images, or one that"
    " datasets saved.",
    "--learn": "The same, of items to learn from (default: a part of --data).",
    "--kind": "text-classification, image-classification, token-classification, embedding,"
    " masked-lm or causal-lm (default: by the model).",
    "--metric": "What judges, e.g. accuracy, log-likelihood, MRR (default: by the kind).",
    "--text-column": "The column of the texts, two for pairs: query,text (default: found).",
    "--label-column": "The column of the labels (default: found).",
    "--batch": "Items of a call as served (default: 16).",
    "--length": "Tokens that texts are cut or padded to (default: most texts' own).",
    "--items": "Judge by at most so many items (default: all).",
    "--dtype": "float32, bfloat16 or float16 (default: the model's).",
    "--device": "cpu or cuda (default: cpu).",
}
"""Options that describe a task without code, with their help."""


def task_argument(
    *, required: bool = True, described: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The argument TASK, and how long its module may take to load.

    ``described``: the options of a task without code, too; they become a part of TASK.
    """

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        limited = click.option(
            "--load-timeout",
            default=300.0,
            show_default=True,
            help="Seconds that the task may take to load; 0: any number.",
        )
        added = click.argument("task", required=required)(limited(command))
        if not described:
            return added

        @wraps(added)
        def run(task: str | None, **given: Any) -> Any:
            asked = {x: given.pop(_field(x)) for x in DESCRIPTION}
            try:
                task = _described(task, asked)
            except AttnpassError as error:
                _fail(str(error), bool(given.get("as_json")))
            return command(task=task, **given)

        for name, told in reversed(DESCRIPTION.items()):
            whole = name in ("--batch", "--length", "--items")
            kind: Any = click.IntRange(min=1) if whole else str
            run = click.option(name, _field(name), type=kind, default=None, help=told)(run)
        return run

    return add


def _field(option: str) -> str:
    """The parameter of an option that describes a task."""
    return "described_" + option.strip("-").replace("-", "_")


def _described(task: str | None, asked: Mapping[str, Any]) -> str | None:
    """TASK with the options that describe it.

    Raises:
        OptionError: options for a task that has code.
    """
    given = {k: v for k, v in asked.items() if v is not None}
    if not given or task is None:
        return task
    from attnpass.tuner.tasks import SOURCES, described

    found = described(task)
    if found is None:
        raise OptionError(
            f"expected {', '.join(given)} with a TASK {':, '.join(SOURCES)}: or a YAML file, got"
            f" {task}: a task with code says these itself"
        )
    names = {k.strip("-").removesuffix("-column"): v for k, v in given.items()}
    return str(found.with_options(names))


class Commands(click.Group):
    """The group; where its own help or usage cannot be printed, that is one line too."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command, whose help ends with an example."""
        cmd.epilog = f"Example: {EXAMPLES[name or cmd.name or '']}"
        super().add_command(cmd, name)

    def main(self, *args: Any, **given: Any) -> Any:
        """Run the command that the arguments name."""
        for number in range(3):
            # a closed one would be the number of the next file, and its content what is printed
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)
        try:
            return super().main(*args, **given)
        except OSError as error:
            _discard_stdout()
            _fail(f"expected to print on stdout, got: {error.strerror or error}", False)
        finally:
            try:
                sys.stdout.flush()
            except (OSError, ValueError, AttributeError):
                _discard_stdout()


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="attnpass")
@click.pass_context
def main(context: click.Context) -> None:
    """Find softmax attention, rewrite chosen layers to cheaper forms, tune the choice.

    TASK is 'digits', 'file.py:factory' or 'package.module:factory'; or without code 'hf:MODEL',
    'st:MODEL', 'timm:MODEL' or 'torchvision:MODEL' with --data FILE, or a YAML file (attnpass
    init).
    """
    if context.invoked_subcommand is None:
        click.echo(FIRST, nl=False)
