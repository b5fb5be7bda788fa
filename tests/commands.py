"""The reference of all commands, from the commands themselves.

``python -m tests.commands`` prints it; ``--write`` puts it into docs/commands.md, which a test
checks to be current.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from attnpass.tuner.cli import main

PAGE = Path(__file__).parent.parent / "docs" / "commands.md"
HEAD = """\
# Commands

Generated from the commands (`python -m tests.commands --write`). Every command but `completion`
also takes `--json` (one JSON object on stdout, progress on stderr) and `--db FILE` (the database,
by default the one that `attnpass doctor` names). Exit codes: 0 done, 1 a failure described in one
line, 2 wrong usage.
"""
EVERYWHERE = {"as_json", "db", "help"}


def page() -> str:
    """The reference in Markdown."""
    parts = [HEAD]
    for name in sorted(main.commands):
        parts.append(_section(name, main.commands[name]))
    return "\n".join(parts)


def _section(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=f"attnpass {name}")
    usage = command.get_usage(context).removeprefix("Usage: ")
    lines = [f"## attnpass {name}", "", _prose(command.help or ""), "", "```", usage]
    lines += [str(command.epilog).removeprefix("Example: "), "```", ""]
    rows = [p for p in command.params if isinstance(p, click.Option) and p.name not in EVERYWHERE]
    if rows:
        lines += ["| option | default | meaning |", "| --- | --- | --- |"]
        lines += [_row(option) for option in rows] + [""]
    return "\n".join(lines)


def _prose(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _row(option: click.Option) -> str:
    default: Any = option.default
    shown = "" if option.is_flag or default is None or "Sentinel" in str(default) else str(default)
    names = ", ".join(f"`{name}`" for name in option.opts)
    meaning = " ".join((option.help or "").split()).replace("|", "\\|")
    return f"| {names} | {shown} | {meaning} |"


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page())
    else:
        print(page())
