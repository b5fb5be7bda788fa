"""A plan per site, and the difference of two."""

from __future__ import annotations

from attnpass import Plan
from attnpass.plan import Entry
from attnpass.tuner.show.plans import plan_table


def cells(table) -> list[list[str]]:
    return [list(row) for row in zip(*(c.cells for c in table.columns), strict=True)]


def test_a_plan_lists_every_site():
    plan = Plan({"a": Entry("softmax"), "b": Entry("skipat", {"r": 1.0, "kernel": 3})})
    table = plan_table(plan)
    assert table.title == f"plan {plan.hash}"
    assert cells(table) == [["a", "softmax", ""], ["b", "skipat", "r=1.0, kernel=3"]]


def test_the_difference_lists_the_sites_that_differ():
    one = Plan({n: Entry("hydra") for n in "abc"})
    other = Plan({"a": Entry("hydra"), "b": Entry("relu", {"h": "gelu"})})
    table = plan_table(one, other)
    assert table.title == f"plan {one.hash} against {other.hash}"
    assert cells(table) == [["b", "hydra", "", "relu", "h=gelu"], ["c", "hydra", "", "-", "-"]]
