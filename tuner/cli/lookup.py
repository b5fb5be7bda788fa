"""The run or the plan that a user names."""

from __future__ import annotations

from pathlib import Path

from attnpass.errors import PlanError, StoreError
from attnpass.plan import Plan
from attnpass.store import Store
from attnpass.task import Task, load_task
from attnpass.tuner.measure import try_task
from attnpass.tuner.search import RunResult, read_result


def task_named(path: str, limit: float) -> Task:
    """The task of a path, loaded within ``limit`` seconds and tried once.

    Raises:
        TaskError: it cannot be loaded, or one of its fields is not usable.
    """
    return try_task(load_task(path, limit=limit))


def with_tiles(plan: Plan, store: Store) -> Plan:
    """The plan, which from now on carries the tiles that were measured on this device."""
    import torch

    from attnpass.environment import kernel_context

    context = kernel_context("cuda" if torch.cuda.is_available() else "cpu")
    if tiles := store.tiles(context):
        plan.add_tiles(context, tiles)
    return plan


def result_named(store: Store, name: str) -> RunResult:
    """The stored result of a finished run: an id, the beginning of exactly one, or ``last``.

    Raises:
        StoreError: there is no such run, it is not finished, or its result is damaged.
    """
    run = store.run(name)
    if run is None:
        raise StoreError(
            f"expected a run in {store.path}, got {name!r}; attnpass results lists them"
        )
    if not run["result"]:
        raise StoreError(
            f"expected a finished run, got {run['id']} which is {run['status']};"
            " run the same tune command again to go on"
        )
    return read_result(run["result"], run["id"])


def plan_named(store: Store, name: str) -> Plan:
    """The plan of a file, of a hash in the store, or the best one of a run.

    Raises:
        PlanError: none of them.
    """
    if Path(name).suffix == ".json":
        return Plan.load(name)
    plan = store.plan(name) if name not in ("", "last") else None
    if plan is not None:
        return plan
    run = store.run(name)
    best = read_result(run["result"], run["id"]).best if run and run["result"] else None
    if run is not None and not best:
        raise PlanError(f"expected a run with a proven plan, got {run['id']} without one")
    plan = store.plan(best) if best else None
    if plan is None:
        raise PlanError(
            f"expected a plan file, a plan or a run of {store.path}, got {name!r};"
            " attnpass results lists them"
        )
    return plan
