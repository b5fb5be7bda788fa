"""Text for a terminal, a page or a log: names of models and files may hold any character."""

from __future__ import annotations

import logging
import reprlib


def printable(text: str, keep: str = "") -> str:
    """The text with control characters, lone surrogates and the like as escapes.

    Characters of ``keep`` stay. The result has no character that a terminal obeys, and it can be
    encoded as UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escaped(c) for c in text)


def one_line(text: str) -> str:
    """The text on one line, printable."""
    return printable(" ".join(line.strip() for line in text.splitlines()))


def shown(value: object) -> str:
    """A value of a file or of a user as messages show it: printable, long ones shortened."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 80
    return printable(short.repr(value))


def listed(names: list[str], most: int = 3) -> str:
    """The first of the names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def make_printable(record: logging.LogRecord) -> bool:
    """A filter of the log: every record passes, its message printable."""
    message = record.getMessage()
    if not message.isprintable():
        record.msg, record.args = printable(message, keep="\n"), ()
    return True


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


# every module that logs a name imports this one, through the errors
logging.getLogger("attnpass").addFilter(make_printable)
