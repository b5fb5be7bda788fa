"""A worker on another machine: it is sent all that it needs, and answers as a local one does."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from attnpass.errors import AttnpassError, TaskError
from attnpass.store import Store
from attnpass.task import BUILT_IN
from attnpass.tuner.measure.device_class import identity
from attnpass.tuner.measure.exchange import CompileSettings, Failure, Reply
from attnpass.tuner.measure.packing import PackedRequest
from attnpass.tuner.measure.worker import Worker


@dataclass(frozen=True)
class Setup:
    """All that a worker elsewhere needs beside the installed packages.

    Attributes:
        task: import path of the task. source: content of its file, where it is one.
        settings: how to compile; the database is the worker's own. tiles: rows of it.
        timeout: seconds per request. kind: ``cpu`` or ``cuda``.
        threads: of torch. openmp: the coordinator's OMP_NUM_THREADS, None where it has none.
    """

    task: str
    source: bytes | None
    settings: CompileSettings
    timeout: float
    kind: str
    threads: int
    openmp: str | None = None
    tiles: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(
        cls, task: str, settings: CompileSettings, timeout: float, kind: str, store: Store
    ) -> Setup:
        """The setup for a task as the coordinator has it.

        Raises:
            TaskError: its file cannot be read.
        """
        where = BUILT_IN.get(task, task).rpartition(":")[0]
        try:
            source = Path(where).read_bytes() if where.endswith(".py") else None
        except OSError as error:
            raise TaskError(f"expected to read {where}, got {error.strerror}") from error
        threads, openmp = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
        rows = store.tile_rows()
        return cls(task, source, settings, timeout, kind, threads, openmp, rows)


class Host:
    """The handle of a worker process on the machine of that process."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.closing = setup, False
        self.folder = TemporaryDirectory(prefix="attnpass-")
        torch.set_num_threads(setup.threads)
        # Ray sets this one, and what is set decides which latencies may be compared
        os.environ.pop("OMP_NUM_THREADS", None)
        if setup.openmp is not None:
            os.environ["OMP_NUM_THREADS"] = setup.openmp
        place = Path(self.folder.name)
        task, db = setup.task, place / "tiles.db"
        if setup.source is not None:
            where, _, name = task.rpartition(":")
            file = place / Path(where).name
            file.write_bytes(setup.source)
            task = f"{file}:{name}"
        with Store(db) as store:
            store.add_tile_rows(setup.tiles)
        compiling = asdict(setup.settings) | {"db": str(db)}
        self.worker = Worker(
            task, timeout=setup.timeout, stopped=lambda: self.closing, **compiling
        )

    def device(self) -> dict[str, Any]:
        """All that the latencies of this worker depend on beside the task.

        Raises:
            TaskError: the task's package is not installed here.
        """
        where = BUILT_IN.get(self.setup.task, self.setup.task).rpartition(":")[0]
        if self.setup.source is None:
            try:
                found = importlib.util.find_spec(where)
            except (ImportError, ValueError):
                found = None
            if found is None:
                raise TaskError(f"expected the module {where} to be installed there, found none")
        return identity(self.setup.kind)

    def answer(self, request: PackedRequest) -> Reply:
        """The worker's reply."""
        try:
            reply = request.asked_of(self.worker)
        except KeyboardInterrupt:
            return Failure("killed", "the run was stopped")
        except AttnpassError as error:
            return Failure("compile_error", str(error))
        if isinstance(reply, Failure) and reply.why.startswith("TaskError"):
            sent = "installed packages" if self.setup.source is None else "the task's one file"
            more = f"; a worker elsewhere has {sent}, and no other file of the coordinator's"
            return replace(reply, why=reply.why + more)
        return reply

    def close(self) -> None:
        """End the process, and every process that it started."""
        self.closing = True
        self.worker.close()
        self.folder.cleanup()
