"""The shared part of all commands: the group, ``--json`` and ``--db``, printing, exit codes.

Exit codes: 0 done, 1 a failure described in one line, 2 wrong usage. ``--json`` prints one JSON
object on stdout and nothing else.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console

from attnpass.console import PlainConsole
from attnpass.errors import AttnpassError


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
        try:
            answer = command(as_json=as_json, db=db, **given)
        except AttnpassError as error:
            _fail(str(error), as_json)
        except KeyboardInterrupt:
            _fail("interrupted; what was measured is kept, the same command goes on", as_json)
        if as_json:
            print(json.dumps(answer.value, default=str))
        else:
            answer.show(PlainConsole(width=None if sys.stdout.isatty() else 160))
        sys.exit(answer.code)

    return run


def _fail(message: str, as_json: bool) -> NoReturn:
    print(f"attnpass: {message}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": message}))
    sys.exit(1)


def path_option(name: str, help_: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """An option that takes a path, None where it is not given."""
    return click.option(name, type=click.Path(path_type=Path), default=None, help=help_)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="attnpass")
def main() -> None:
    """Find softmax attention, rewrite chosen layers to cheaper forms, tune the choice.

    TASK is 'digits', 'file.py:factory' or 'package.module:factory'.
    """
