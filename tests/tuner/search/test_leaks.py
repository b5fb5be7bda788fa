"""Items that something was fitted to judge no plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_tasks import tiny
from tuning import settings

from attnpass.errors import TaskError
from attnpass.store import Store
from attnpass.tuner.search import inspect_task
from attnpass.tuner.search.leaks import refuse_leaks


def large():
    """More than 1000 items: 40 % select, the rest judges."""
    task = tiny()
    images = torch.rand(1100, 1, 4, 4, generator=torch.Generator().manual_seed(5))
    labels = torch.zeros(1100, dtype=torch.long)
    pairs = zip(images.split(50), labels.split(50), strict=True)
    return replace(task, validation=[((x,), y) for x, y in pairs])


def test_sets_without_a_common_item_pass():
    refuse_leaks(tiny(), learns=True)
    refuse_leaks(large(), learns=True)


@pytest.mark.parametrize("name", ["calibration", "recovery"])
def test_an_item_of_validation_that_something_learns_from_is_an_error(name):
    task = tiny()
    (images,), _ = task.validation[3]
    setattr(task, name, [(torch.rand(4, 1, 32, 32),), (torch.cat([images[7:8] * 1, images[:2]]),)])
    with pytest.raises(TaskError, match=rf"no item of Task.{name} in .*, got 3 of its 60"):
        refuse_leaks(task, learns=True)
    if name == "recovery":
        refuse_leaks(task, learns=False)


def test_an_item_that_selects_and_judges_is_an_error():
    task = large()
    (first,), _ = task.validation[0]
    (last,), labels = task.validation[-1]
    task.validation[-1] = ((torch.cat([last[:-1], first[:1]]),), labels)
    with pytest.raises(TaskError, match="got 1 both among the first 400"):
        refuse_leaks(task, learns=False)


def test_a_run_does_not_begin_with_a_leak(tmp_path):
    with Store(tmp_path / "a.db") as store, pytest.raises(TaskError, match="got 8 of its 60"):
        inspect_task(settings(task=f"{__file__}:leaking"), store)


def leaking():
    task = tiny()
    (images,), _ = task.validation[0]
    return replace(task, calibration=[(images[:8],)])
