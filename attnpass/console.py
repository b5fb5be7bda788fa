"""A console of ``rich`` where every text stands as it is: no markup, nothing a terminal obeys."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from attnpass.text import printable


class PlainConsole(Console):
    """A console whose strings are names and numbers, in tables too; styles are given as styles."""

    def __init__(self, **given: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **given)

    def render_str(self, text: str, **given: Any) -> Text:
        """The text, printable."""
        return super().render_str(printable(text, keep="\n"), **given)
