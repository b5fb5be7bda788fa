"""Items that something was fitted to judge no plan."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace

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


def test_an_item_that_selects_and_judges_is_an_error_above_one_in_a_hundred(caplog):
    caplog.set_level(logging.WARNING, logger="attnpass")
    task = large()
    (first,), _ = task.validation[0]
    (last,), labels = task.validation[-1]
    for shared in (2, 10):
        task.validation[-1] = ((torch.cat([last[:-shared], first[:shared]]),), labels)
        if shared == 2:
            refuse_leaks(task, learns=False)
            assert "got 2 of its 400" in caplog.text
        else:
            with pytest.raises(TaskError, match="got 10 of its 400"):
                refuse_leaks(task, learns=False)


def ids(*shape):
    return torch.randint(5, 30000, shape)


def time_first():
    x = ids(16, 8)
    x[0] = 1
    return (x,)


BATCHES = {
    "positions first": lambda: {"position_ids": torch.arange(16)[None], "input_ids": ids(8, 16)},
    "mask first": lambda: (torch.ones(16, 16).tril().bool(), torch.randn(8, 16, 4)),
    "bias first": lambda: (torch.ones(16, 16).tril().log(), torch.randn(8, 16, 4)),
    "time first": time_first,
    "packed": lambda: (ids(512), torch.tensor([0, 128, 512])),
    "one row of padding": lambda: (torch.cat([ids(7, 9), torch.zeros(1, 9).long()]),),
    "one image, other masks": lambda: (IMAGE, torch.rand(8, 16) > 0.5),
    "sparse": lambda: (torch.eye(8).to_sparse(), torch.randn(8, 3)),
}
IMAGE = torch.randn(8, 16)


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("target", [torch.zeros(8), torch.tensor(1.0), 3, [0] * 8])
def test_honest_tasks_pass_and_a_repeated_batch_does_not(kind, target):
    torch.manual_seed(0)
    make = BATCHES[kind]
    task = SimpleNamespace(
        validation=[(make(), target) for _ in range(4)],
        calibration=[make() for _ in range(2)],
        recovery=[],
    )
    refuse_leaks(task, learns=True)
    task.calibration = [task.validation[2][0]]
    with pytest.raises(TaskError, match="no item of Task.calibration"):
        refuse_leaks(task, learns=True)


def test_a_run_does_not_begin_with_a_leak(tmp_path):
    with Store(tmp_path / "a.db") as store, pytest.raises(TaskError, match="got 8 of its 60"):
        inspect_task(settings(task=f"{__file__}:leaking"), store)


def leaking():
    task = tiny()
    (images,), _ = task.validation[0]
    return replace(task, calibration=[(images[:8],)])
