"""One case: files that are made in a folder, a command on them, and what may come of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from forked import Ended

MEMORY = 1500
"""MiB that a command may take beyond what torch takes."""


@dataclass(frozen=True)
class Case:
    """A case.

    Attributes:
        name: unique. make: writes its files into a folder. arguments: of the command, in which
            ``{}`` is the folder. codes: the exit codes that are right. told: what the line of an
            error must hold. absent: files that must not be there afterwards.
        run: what runs instead of the command. limit: seconds. silent: nobody reads what is said.
    """

    name: str
    make: Callable[[Path], object]
    arguments: tuple[str, ...] = ()
    codes: tuple[int, ...] = (1,)
    told: str = ""
    absent: tuple[str, ...] = ()
    run: Callable[[Path], object] | None = None
    limit: float = 60.0
    silent: bool = False

    @property
    def kind(self) -> str:
        """The first word of the name."""
        return self.name.split(":")[0]


def fault(case: Case, ended: Ended, folder: Path) -> str:
    """What is wrong with how a case ended, empty where nothing is."""
    said = ended.err + ended.out
    lines = [x for x in ended.err.splitlines() if x.strip()]
    if ended.late:
        return f"no end within {case.limit:g} s"
    if "Traceback" in said:
        return f"a traceback: {said[-300:]}"
    if "ATTNPASS_TRACE" in said:
        return f"an error that is not ours: {lines[-1][:300]}"
    if ended.code not in case.codes:
        return f"exit code {ended.code} of {case.codes}: {said[-300:]}"
    if ended.mib > MEMORY:
        return f"{ended.mib:.0f} MiB of memory"
    if raw := re.search(r"[^\n]", "".join(c for c in said if not c.isprintable() and c != "\n")):
        return f"the character {raw.group()!r} is printed as it is"
    errors = [x for x in lines if x.startswith("attnpass: ")]
    if errors and len(lines) > 1:
        return f"more than one line: {ended.err[:300]}"
    # where a check is the command, what it found is its answer
    if ended.code == 1 and not errors and "expected" not in ended.out and not case.silent:
        return f"no line that says what was expected: {said[-300:]!r}"
    if case.told and not re.search(case.told, said):
        return f"nothing on {case.told!r}: {said[-300:]}"
    left = [p.name for p in folder.rglob("*") if re.search(r"\.\d+$", p.name)]
    left += [name for name in case.absent if (folder / name).exists()]
    return f"left behind: {', '.join(left)}" if left else ""
