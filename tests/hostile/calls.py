"""Calls with odd arguments, and with places that cannot be written."""

from __future__ import annotations

import functools
import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tuning import TINY

from attnpass.tuner.cli import main
from hostile import databases, plan_files
from hostile.case import Case

ODD = ["\x1b[2J", "\udcff", "[/]", "a" * 5000, "", " ", "../..", "-", "%s", "\n", "\u202e"]
OPTIONS = {
    "--max-drop": ["nan", "inf", "-1", "1", "1e400"],
    "--trials": ["-1", "-99999"],
    "--timeout": ["0", "-1", "nan"],
    "--load-timeout": ["-1", "nan"],
    "--forms": ["\x1b[2J", ",", "skipat r", "relu h=[]", "gelu alpha=1e999", "hydra,hydr"],
    "--effort": ["", "\x1b[2J"],
    "--inner": ["none", "\x1b[2J"],
    "--mode": ["none", "\x1b[2J"],
    "--recover-budget": ["nan", "inf", "-1", "1e400h", "", "h"],
    "--recover-rank": ["-1"],
    "--recover-steps": ["-1"],
    "--budget": ["nan", "inf", "-1", "1e400h", "h"],
    "--objective": ["", "\x1b[2J"],
    "--max-ms": ["nan", "inf", "-1"],
    "--max-memory-mb": ["nan", "-1"],
    "--tiles": ["-1"],
    "--out": ["/dev/full", "/dev/null/x", "/proc/x"],
}


def good(folder: Path) -> None:
    """A plan, and a database with it and one run."""
    databases.whole(folder)


def limited(*arguments: str, size: int = 2000) -> Callable[[Path], None]:
    """The command where no file may grow beyond ``size`` bytes, as on a full disk."""

    def run(folder: Path) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        main([x.replace("{}", str(folder)) for x in arguments])

    return run


def onto(device: str | None, *arguments: str) -> Callable[[Path], None]:
    """The command with stdout on a device, closed (None), or on a pipe that nobody reads."""

    def run(folder: Path) -> None:
        if device == "pipe":
            read, write = os.pipe()
            os.close(read)
            os.dup2(write, 1)
        elif device:
            os.dup2(os.open(device, os.O_WRONLY), 1)
        else:
            os.close(1)
            sys.stdout = None
        main([x.replace("{}", str(folder)) for x in arguments])

    return run


def cases() -> Iterator[Case]:
    """All cases of calls."""
    db = ("--db", "{}/a.db")
    for word in ODD:
        for command in ("show", "solve", "report", "sites", "pin", "import", "export", "results"):
            more = ("{}/out.json",) if command == "export" else ()
            if word == "-" or (command == "results" and word == ""):
                continue
            name = f"call: {command} {word[:9]!r}"
            yield Case(name, good, (command, word, *more, *db), (1, 2))
    for option, values in OPTIONS.items():
        for value in values:
            given = (
                "tune",
                TINY,
                f"{option}={value}",
                "--dry-run"[: 0 if option == "--out" else 9],
            )
            given = tuple(x for x in given if x)
            fine = (0, 1, 2) if option in ("--inner", "--mode") else (1, 2)
            yield Case(f"call: tune {option}={value[:9]!r}", good, (*given, *db), fine)
    for given in (("show",), ("show", "a", "b", "c"), ("none",), ("results", "--limit", "0")):
        yield Case(f"call: {' '.join(given)}", good, (*given, *db), (1, 2))
    for word in ODD:
        for given in (("diff", word, "last"), ("explain-choice", "last", word)):
            yield Case(f"call: {given[0]} {word[:9]!r}", good, (*given, *db), (1, 2))
    yield Case("call: show three plans", good, ("show", *["{}/plan.json"] * 3, *db), (1, 2))
    yield from _unwritable(db)
    yield from _streams(db)


def _unwritable(db: tuple[str, ...]) -> Iterator[Case]:
    """Full disks and places that are no folders: nothing partial is left."""
    plan = databases._hash()
    outputs = {"export": (plan, "{}/out.json"), "report": ("last", "--out", "{}/out.html")}
    left = ("out.json", "out.safetensors", "out.html", "out.png")
    for command, given in outputs.items():
        for size in (300, 2000, 20_000):
            run = limited(command, *given, *db, size=size)
            name = f"call: {command}, a disk full after {size} bytes"
            yield Case(name, good, codes=(1,), run=run, absent=left)
    for size in (300, 5000):
        run = limited("import", "{}/plan.json", "--db", "{}/new.db", size=size)
        yield Case(f"call: import, a disk full after {size} bytes", good, codes=(1,), run=run)
    for place in ("/dev/full", "/dev/null", "/proc/none", "{}/a.db/x", "{}", "/dev/null/x"):
        for command, given in outputs.items():
            arguments = (command, *(x if "{}/out" not in x else place for x in given), *db)
            yield Case(f"call: {command} to {place}", good, arguments, absent=("a.db/x",))


def _streams(db: tuple[str, ...]) -> Iterator[Case]:
    """Stdout that is closed, full, or a pipe that nobody reads."""
    calls = [("results",), ("results", "--json"), ("show", "last"), ("show", "none", "--json")]
    calls += [("show", "{}/plan.json"), ("--help",), ("results", "--help")]
    for given in calls:
        more = () if "--help" in given else db
        for device in (None, "/dev/full", "pipe"):
            run = onto(device, *given, *more)
            codes = (0, 1) if device is None and "--help" in given else (1,)
            name = f"call: {' '.join(given)} onto {device or 'a closed stdout'}"
            yield Case(name, good, codes=codes, run=run, silent=device == "pipe")


def written(folder: Path) -> None:
    """A good plan's files alone."""
    functools.partial(plan_files.changed(lambda d, t: None))(folder)
