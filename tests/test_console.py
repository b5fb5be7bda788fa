"""Names are printed as they are, in lines and in tables, but for what a terminal obeys."""

from __future__ import annotations

import io

from rich.table import Table
from rich.text import Text

from attnpass.console import PlainConsole


def printed(*things) -> str:
    out = io.StringIO()
    PlainConsole(file=out, width=80, force_terminal=True, color_system="standard").print(*things)
    return out.getvalue()


def test_markup_and_emoji_are_text():
    assert printed("[/] [bold]x[/] :smile:") == "[/] [bold]x[/] :smile:\n"


def test_tables_hold_any_name():
    table = Table(title="\x1b[2J [/]")
    table.add_column("[/] \ud800")
    table.add_row("a[/]\x1b]0;x\x07")
    text = printed(table)
    assert "\\x1b[2J [/]" in text and "a[/]\\x1b]0;x\\x07" in text and "[/] \\ud800" in text
    text.encode()


def test_styles_are_given_as_styles():
    assert printed(Text("ok", "green")) == "\x1b[32mok\x1b[0m\n"
