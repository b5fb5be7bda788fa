"""No character of a name reaches a terminal as a command, and every text can be encoded."""

from __future__ import annotations

import logging

import pytest

from attnpass.errors import PlanError
from attnpass.text import listed, make_printable, one_line, printable, shown


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("blocks.0.attn", "blocks.0.attn"),
        ("größe 注意", "größe 注意"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\ud800b", "a\\ud800b"),
        ("a\u202eb\u2028c", "a\\u202eb\\u2028c"),
        ("a\nb\tc\x00", "a\\nb\\tc\\x00"),
    ],
)
def test_printable(text, safe):
    assert printable(text) == safe
    assert printable(text).encode() and printable(printable(text)) == printable(text)


def test_kept_characters_stay():
    assert printable("a\nb\x07", keep="\n") == "a\nb\\x07"


def test_one_line_joins_lines():
    assert one_line("first\n  second\r\nthird\x1b") == "first second third\\x1b"


def test_shown_is_short_and_printable():
    assert shown("x" * 10**6).startswith("'xxx") and len(shown("x" * 10**6)) <= 90
    assert len(shown(list(range(10**5)))) < 100
    assert len(shown(10**4000)) < 100
    assert "\x1b" not in shown({"\x1b": "\x1b"})


def test_listed_counts_what_it_leaves_out():
    assert listed(["a", "b", "c"]) == "a, b, c"
    assert listed([str(i) for i in range(10)]) == "0, 1, 2 and 7 more"


def test_an_error_is_one_printable_line():
    assert str(PlanError("expected \x1b[2J\nand more")) == "expected \\x1b[2J and more"


def test_a_record_of_the_log_is_printable(caplog):
    log = logging.getLogger("attnpass")
    assert make_printable in log.filters
    log.warning("site %s", "\x1b[2J")
    log.warning("site %s", "plain")
    assert [r.getMessage() for r in caplog.records] == ["site \\x1b[2J", "site plain"]
