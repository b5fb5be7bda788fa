"""Items in parts that share none: to learn from, and to judge by."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Hashable, Sequence

from attnpass.errors import TaskError
from attnpass.tuner.tasks.rows import Row

log = logging.getLogger("attnpass.tasks")

LEARN_SHARE, LEARN_MOST = 0.25, 4096
"""Share of the items to calibrate and distil on, where there are no others; at most so many."""

LEAST_JUDGED, LEAST_LEARNT = 40, 8
"""Items without which nothing can be said, or fitted."""


def parted(
    judged: Sequence[Row],
    learnt: Sequence[Row] | None,
    most: int,
    content: Callable[[Row], Hashable],
) -> tuple[list[Row], list[Row]]:
    """Rows to learn from and rows to judge by, in a fixed random order, each content once.

    ``most``: of the rows to judge by, 0 for any number. Rows to learn from that also judge are
    left out.

    Raises:
        TaskError: too few are left.
    """
    mine = _once(judged, content)
    random.Random(0).shuffle(mine)
    if learnt is None:
        count = min(int(LEARN_SHARE * len(mine)), LEARN_MOST)
        others, mine = mine[:count], mine[count:]
    else:
        taken = {content(row) for row in mine}
        others = [row for row in _once(learnt, content) if content(row) not in taken]
        random.Random(0).shuffle(others)
        others = others[:LEARN_MOST]
    mine = mine[: most or None]
    left = len(judged) - len(mine) - (len(others) if learnt is None else 0)
    log.info(
        "%d items judge, %d are learned from%s",
        len(mine),
        len(others),
        f"; {left} left out (repeated, or beyond --items)" if left else "",
    )
    for count, least, what in (
        (len(mine), LEAST_JUDGED, "to judge by"),
        (len(others), LEAST_LEARNT, "to learn from"),
    ):
        if count < least:
            raise TaskError(f"expected at least {least} different items {what}, got {count}")
    return others, mine


def _once(rows: Sequence[Row], content: Callable[[Row], Hashable]) -> list[Row]:
    """The first row of every content."""
    found: dict[Hashable, Row] = {}
    for row in rows:
        found.setdefault(content(row), row)
    return list(found.values())
