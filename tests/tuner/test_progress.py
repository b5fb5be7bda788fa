"""Progress goes to stderr, as lines where there is no terminal; a quiet printer prints nothing."""

from __future__ import annotations

from rich.console import Console

from attnpass.tuner.progress import ProgressPrinter


def worked(printer: ProgressPrinter) -> None:
    printer.say("[bold]begin[/]")
    with printer.stage("work", 2) as step:
        step("one")
        step("two")


def test_lines_where_there_is_no_terminal(capsys):
    worked(ProgressPrinter())
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["begin", "work (2) ...", "work: 0 s"]


def test_a_quiet_printer_prints_nothing(capsys):
    worked(ProgressPrinter(quiet=True))
    assert capsys.readouterr() == ("", "")


def test_bars_on_a_terminal(capsys):
    printer = ProgressPrinter()
    printer.console = Console(stderr=True, force_terminal=True, width=120)
    worked(printer)
    err = capsys.readouterr().err
    assert "2/2" in err and "two" in err
