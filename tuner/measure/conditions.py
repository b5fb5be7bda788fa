"""What else a machine does while it is measured: its load, stolen time, clock rate."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import psutil
import torch


@dataclass(frozen=True)
class Conditions:
    """What a measurement was taken under.

    Attributes:
        load: processes that ran or waited to, mean of the last minute.
        others: share of all processors' time that other processes took meanwhile, 0 to 1.
        stolen: share that the machine's host gave to others, 0 to 1.
        mhz: mean clock rate, 0 where the system does not tell it.
        threads: of the measured process. pinned: whether it was kept on one processor.
    """

    load: float
    others: float
    stolen: float
    mhz: float
    threads: int
    pinned: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Any) -> Conditions | None:
        """The record of plain JSON types; None where a field is missing or no number."""
        names = [f.name for f in fields(cls)]
        numbers = isinstance(value, Mapping) and all(
            isinstance(value.get(name), (int, float)) for name in names
        )
        return cls(**{name: value[name] for name in names}) if numbers else None

    def __str__(self) -> str:
        clock = f", {self.mhz / 1e3:.1f} GHz" if self.mhz else ""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return (
            f"load {self.load:.1f}, others took {self.others:.0%} of the processors and the host"
            f" {self.stolen:.0%}{clock}, {threads}" + (" on one processor" if self.pinned else "")
        )


class Watch:
    """Looks at the machine from its making until ``conditions`` is asked for."""

    def __init__(self) -> None:
        self._before, self._own = psutil.cpu_times(), os.times()

    def conditions(self, *, pinned: bool = False) -> Conditions:
        """What the machine did in between."""
        now, own = psutil.cpu_times(), os.times()
        spent = {k: getattr(now, k) - getattr(self._before, k) for k in now._fields}
        # guests are counted among the users already
        total = sum(v for k, v in spent.items() if not k.startswith("guest")) or 1.0
        idle = spent.get("idle", 0.0) + spent.get("iowait", 0.0)
        stolen = spent.get("steal", 0.0)
        mine = sum(own[:4]) - sum(self._own[:4])
        clock = psutil.cpu_freq()
        return Conditions(
            load=round(psutil.getloadavg()[0], 2),
            others=round(min(1.0, max(0.0, total - idle - stolen - mine) / total), 3),
            stolen=round(stolen / total, 3),
            mhz=round(clock.current) if clock else 0.0,
            threads=torch.get_num_threads(),
            pinned=pinned,
        )


@contextmanager
def limited(threads: int, pinned: bool) -> Iterator[bool]:
    """Run torch with so many threads (0: as it is), kept on the idlest processor if ``pinned``.

    Yields whether it is kept there: not every system can.
    """
    before, process = torch.get_num_threads(), psutil.Process()
    allowed = process.cpu_affinity() if pinned and hasattr(process, "cpu_affinity") else None
    try:
        if threads:
            torch.set_num_threads(threads)
        if allowed:
            busy = psutil.cpu_percent(0.2, percpu=True)
            process.cpu_affinity([min(allowed, key=lambda i: busy[i] if i < len(busy) else 100.0)])
        yield bool(allowed)
    finally:
        torch.set_num_threads(before)
        if allowed:
            process.cpu_affinity(allowed)
