"""Progress goes to stderr, as lines where there is no terminal; a quiet printer prints nothing."""

from __future__ import annotations

from rich.console import Console

from attnpass.tuner.progress import ProgressPrinter


def worked(printer: ProgressPrinter) -> None:
    printer.say("begin", style="bold")
    with printer.stage("work", 2) as step:
        step("one")
        step("two")


def test_lines_where_there_is_no_terminal(capsys):
    worked(ProgressPrinter())
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["begin", "work (2) ...", "work: 0 s"]


def test_names_are_printed_as_they_are_but_for_what_a_terminal_obeys(capsys):
    printer = ProgressPrinter()
    printer.say("site [/] :smile: \x1b[2J \ud800")
    with printer.stage("\x1b[2J [/]", 1) as step:
        step("\ud800")
    out, err = capsys.readouterr()
    assert err.splitlines()[0] == "site [/] :smile: \\x1b[2J \\ud800"
    assert "\x1b" not in err and "\\x1b[2J [/]: 0 s" in err


def test_a_quiet_printer_prints_nothing(capsys):
    worked(ProgressPrinter(quiet=True))
    assert capsys.readouterr() == ("", "")


def test_bars_on_a_terminal(capsys):
    printer = ProgressPrinter()
    printer.console = Console(stderr=True, force_terminal=True, width=120)
    worked(printer)
    err = capsys.readouterr().err
    assert "2/2" in err and "two" in err
