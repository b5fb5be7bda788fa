"""A sample of ``task_changes.py``: nothing is served that differs from a measurement."""

from __future__ import annotations

import collections

import pytest
import task_changes
import torch
from changes import CHANGES

SAMPLE = {
    "source": ("function", "inherited method", "import when called", "body of a custom op"),
    "object": ("range", "re.Pattern", "label smoothing", "generator", "state that is not pickled"),
    "function": ("function attribute", "attribute of a base class"),
    "model": ("tensor in a plain object", "state of a disabled function"),
    "variable": ("name made at run time",),
    "file": ("one item outside the canary",),
    "data": ("calibration",),
    "switch": ("default dtype",),
}


@pytest.fixture(scope="module")
def warm():
    torch._dynamo.reset()
    task_changes.warm()


CHOSEN = [c for c in CHANGES if c.name in SAMPLE.get(c.kind, ())]


def test_the_table_is_long_and_every_change_has_its_name():
    names = collections.Counter((c.kind, c.name) for c in CHANGES)
    assert len(names) == len(CHANGES) >= 120 and len(CHOSEN) == sum(map(len, SAMPLE.values()))


@pytest.mark.slow
@pytest.mark.parametrize("change", CHOSEN, ids=lambda c: f"{c.kind} {c.name}")
def test_no_change_is_served_the_figures_of_before(change, warm):
    assert task_changes.verdict(change, twice=False)["verdict"] == "caught"


@pytest.mark.slow
def test_a_change_without_an_effect_is_served(warm):
    (change,) = (c for c in CHANGES if c.name == "type of the labels")
    row = task_changes.verdict(change)
    assert (row["verdict"], row["unchanged task"]) == ("hit", "served"), row


@pytest.mark.slow
def test_the_check_can_fail(monkeypatch, warm):
    """Without the score in the key and without a canary the change is served."""
    from attnpass.tuner.search import baseline_row, candidates, inspection

    context = inspection._context
    monkeypatch.setattr(
        inspection, "_context", lambda *a: {**context(*a), "score": "", "sources": ""}
    )
    monkeypatch.setattr(baseline_row, "difference", lambda *a: "")
    monkeypatch.setattr(candidates, "score_difference", lambda *a: "")
    (change,) = (c for c in CHANGES if (c.kind, c.name) == ("object", "range"))
    assert task_changes.verdict(change, twice=False)["verdict"] == "wrong hit"


@pytest.mark.slow
def test_a_change_of_a_helper_through_the_command():
    (change,) = (c for c in CHANGES if (c.kind, c.name) == ("source", "function"))
    row = task_changes.command(change, oracle=False)
    before, served, _ = row["before, served, truth"]
    assert before != served, row
