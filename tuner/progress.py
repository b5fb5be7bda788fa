"""The progress of a run: bars on a terminal, plain lines elsewhere, always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from attnpass.console import PlainConsole
from attnpass.text import printable


class ProgressPrinter:
    """Prints lines and progress bars to stderr; a ``quiet`` one prints nothing."""

    def __init__(self, quiet: bool = False) -> None:
        width = None if sys.stderr.isatty() else 160
        self.console = PlainConsole(stderr=True, width=width)
        self.quiet = quiet

    def say(self, text: RenderableType, style: str | None = None) -> None:
        """Print one line, or anything else that rich can render."""
        if not self.quiet:
            self.console.print(text, style=style)

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Callable[[str], None]]:
        """Show the progress of a stage of ``total`` steps.

        Yields a function to be called after each step with a short text about that step.
        """
        title = printable(title)
        if self.quiet:
            yield lambda _: None
        elif self.console.is_terminal:
            columns = (
                TextColumn("{task.description:<38}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[last]}", style="dim", markup=False),
            )
            with Progress(*columns, console=self.console) as progress:
                bar = progress.add_task(title, total=total, last="")
                yield lambda last: progress.update(bar, advance=1, last=printable(last))
        else:
            start = time.monotonic()
            print(f"{title} ({total}) ...", file=sys.stderr, flush=True)
            yield lambda _: None
            print(f"{title}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
