"""The tests that ``make check`` runs: those of changed rooms, and of the rooms behind them.

    python tests/changed.py    prints paths of tests, one a line

Changed is what differs from the merge base with the upstream branch, or from the commit before
the last where there is no upstream: committed, in the working tree, or new. A room's tests are
run together with those of the rooms that import it directly (``house.ROOMS``), unless that would
be the tests of more than ``MOST`` rooms: then the changed rooms alone. Where nothing changed, or
too much, a quick selection runs.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

import house

MOST = 3
"""Tests of this many rooms run in under three minutes on two cores, slow ones left out."""

QUICK = (
    *("tests/test_house.py", "tests/test_backend.py", "tests/graph", "tests/plan/test_plan.py"),
    *(f"tests/matching/test_{x}.py" for x in ("axis_rules", "factors", "masks", "legality")),
    *("tests/forms", "tests/kernels/test_reference.py", "tests/rewrite/test_branch.py"),
)
"""One or two of each kind, under two minutes."""


def changed_files(root: Path) -> list[str]:
    """Paths below ``root`` that changed, relative to it; none without git or a second commit."""
    base = _git(root, "merge-base", "HEAD", "@{upstream}") or _git(root, "rev-parse", "HEAD~1")
    if not base:
        return []
    differ = _git(root, "diff", "--name-only", base[0])
    return sorted({*differ, *_git(root, "ls-files", "--others", "--exclude-standard")})


def _git(root: Path, *arguments: str) -> list[str]:
    """The lines that a git command prints; none where it fails."""
    try:
        command = ["git", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    return done.stdout.split() if done.returncode == 0 else []


def room_of(path: str) -> str:
    """The room that a source file, or the tests in a room's folder, belong to; ``""`` for none."""
    folder, _, rest = path.partition("/")
    if not path.endswith((".py", ".cpp", ".h")):
        return ""
    if folder == "attnpass":
        return house.room(_dotted(rest))
    if folder in ("kernels", "tuner"):
        return house.room(_dotted(path))
    if folder == "tests":
        *rooms, name = _dotted(rest).split(".")
        return house.room(".".join([*rooms, name.removeprefix("test_")]))
    return ""


def _dotted(path: str) -> str:
    return path.rpartition(".")[0].replace("/", ".")


def importers(room: str) -> set[str]:
    """The rooms that import ``room`` directly."""
    return {own for own, others in house.ROOMS.items() if house.seen(own, room) in others}


def tests_of(room: str) -> list[str]:
    """The folder or the file of a room's tests; none where there is neither."""
    folder, _, name = room.replace(".", "/").rpartition("/")
    options = (Path("tests", folder, name), Path("tests", folder, f"test_{name}.py"))
    return [str(p) for p in options if (house.ROOT / p).exists()]


def chosen(files: Iterable[str]) -> list[str]:
    """The paths of the tests to run after a change to ``files``."""
    files = list(files)
    rooms = {room for room in map(room_of, files) if room}
    if not rooms or len(rooms) > MOST:
        return [path for path in QUICK if (house.ROOT / path).exists()]
    behind = rooms.union(*map(importers, rooms))
    if len(behind) <= MOST:
        rooms = behind
    alone = {
        path
        for path in files
        if path.startswith("tests/") and Path(path).name.startswith("test_")
        if room_of(path) not in rooms and (house.ROOT / path).exists()
    }
    return sorted({"tests/test_house.py", *alone, *(p for r in rooms for p in tests_of(r))})


if __name__ == "__main__":
    print(*chosen(changed_files(house.ROOT)), sep="\n")
