"""Who takes the latencies of a run: one process, one per device, or the nodes of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from attnpass.store import Store
from attnpass.tuner.measure import (
    CompileSettings,
    Pool,
    PoolWorker,
    Setup,
    Worker,
    choose_class,
    class_of,
    described,
    differing,
    identity,
    local_devices,
    local_workers,
    model_digest,
    ray_workers,
)
from attnpass.tuner.search.inspection import Inspection


def one_worker(inspection: Inspection, store: Store, stopped: Callable[[], bool]) -> Worker:
    """The worker of a run, which must make the model that the run captured."""
    compiling = asdict(_compiling(inspection, store))
    settings = inspection.settings
    return Worker(settings.task, timeout=settings.timeout, stopped=stopped, **compiling)


@contextmanager
def pool_of(
    inspection: Inspection, store: Store, say: Callable[[str], None]
) -> Iterator[Pool | None]:
    """The pool that the settings ask for, of one device class; None where one process is enough.

    Raises:
        OptionError: devices that are not there. MissingDependencyError: Ray is not installed.
        MeasureError: no worker of a cluster is ready.
    """
    settings, kind = inspection.settings, inspection.kind
    compiling = _compiling(inspection, store)
    if settings.ray:
        setup = Setup.of(settings.task, compiling, settings.timeout, kind, store)
        with ray_workers(settings.ray, setup, say) as found:
            yield from _pool(found, inspection, say, settings.devices)
    elif settings.devices:

        def make(visible: str) -> Worker:
            more = asdict(compiling) | {"visible": visible}
            return Worker(settings.task, timeout=settings.timeout, **more)

        names = local_devices(settings.devices, kind)
        yield from _pool(local_workers(names, make), inspection, say)
    else:
        yield None


def _compiling(inspection: Inspection, store: Store) -> CompileSettings:
    settings = inspection.settings
    weights = model_digest(inspection.task.model)
    return CompileSettings(
        settings.inner, settings.mode, str(store.path), weights, settings.objective
    )


def _pool(
    workers: Sequence[PoolWorker],
    inspection: Inspection,
    say: Callable[[str], None],
    asked: str = "",
) -> Iterator[Pool]:
    """The pool of the workers of one class; who they are, and who is idle, is said."""
    own = identity(inspection.kind)
    chosen = choose_class([w.device for w in workers], own, asked)
    used = [w for w in workers if class_of(w.device) == chosen]
    told = described(used[0].device)
    say(f"latencies are taken by {len(used)} of {len(workers)} workers: {told}")
    for worker in workers:
        if worker not in used:
            fields = ", ".join(differing(worker.device, used[0].device))
            say(
                f"worker {worker.name} ({described(worker.device)}) is left idle: its times cannot"
                f" be compared, other {fields}; --devices chooses another class"
            )
            worker.close()
    with Pool(used, timeout=inspection.settings.timeout, say=say) as pool:
        yield pool
