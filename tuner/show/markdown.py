"""A run as one Markdown file, for a pull request or a wiki."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from attnpass.errors import OutputError
from attnpass.files import reason, replace_file
from attnpass.text import printable
from attnpass.tuner.search import RunResult
from attnpass.tuner.show.report_rows import (
    ceiling_rows,
    layer_rows,
    noise_rows,
    plan_rows,
    where_rows,
)
from attnpass.tuner.show.words import command_of, counts, next_words, use_of, verdict


def write_markdown(result: RunResult, path: Path) -> Path:
    """Write the report of a finished run to ``path``.

    Raises:
        OutputError: the file cannot be written.
    """
    parts = [
        f"# attnpass: {_cell(result.task)}",
        f"{verdict(result)}.",
        "\n".join(f"{i}. {line}" for i, line in enumerate(next_words(result), 1)),
        _code(use_of(result.best)) if result.best else "",
        _section("Every plan that was judged", _table(*plan_rows(result))),
        _section("Layer by layer", _table(*layer_rows(result))),
        _section("How fast it can become", _table(("", ""), ceiling_rows(result))),
        _section("How noisy the machine was", _table(("", ""), noise_rows(result))),
        _section("What became of the plans", _table(("outcome", "plans"), counts(result))),
        _section("Where and with what", _table(("", ""), where_rows(result))),
        _section("The same again", _code(command_of(result))),
    ]
    text = printable("\n\n".join(filter(None, parts)) + "\n", keep="\n")
    try:
        replace_file(path, lambda half: half.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise OutputError(
            f"expected to write {path}, got {reason(error)}; choose another file with --out"
        ) from error
    return path


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _code(text: str) -> str:
    return f"```\n{text}\n```"


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    body = [[_cell(str(x)) for x in row] for row in rows]
    if not body:
        return ""
    lines = [columns, ["---"] * len(columns), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
