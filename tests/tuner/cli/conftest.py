"""A stored plan, for all tests of commands; it is left as it is."""

from __future__ import annotations

import pytest
from tuning import TINY

from attnpass import Plan
from attnpass.store import Store
from attnpass.task import load_task


@pytest.fixture(scope="session")
def stored(tmp_path_factory):
    """A database with one plan, and the plan's file."""
    folder = tmp_path_factory.mktemp("cli")
    task = load_task(TINY)
    plan = Plan.create(task.model, *task.example, form="hydra", sites="blocks.[12].attn")
    with Store(folder / "a.db") as store:
        store.save_plan(plan)
    return folder / "a.db", plan.save(folder / "plan.json"), plan.hash
