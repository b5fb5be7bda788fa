"""Answers to questions as tables: every part is there, and long values are cut."""

from __future__ import annotations

from attnpass.console import PlainConsole
from attnpass.tuner.measure import Bound, Ratio
from attnpass.tuner.search import Solution, Verdict
from attnpass.tuner.search.plan_row import PlanLatency, PlanRow
from attnpass.tuner.show import choice_table, difference_table, solution_table


def text(table) -> str:
    console = PlainConsole(width=200, record=True, quiet=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_plans_are_proven_likely_or_predicted():
    judged = Bound(100, 0.9, 0.01, 0.02, 0.95)
    proven = PlanRow(
        "abc", {"a": "hydra"}, 5.0, judged, judged, None, PlanLatency(4.0, Ratio(2.5, 2, 3, 9))
    )
    likely = PlanRow("def", {"a": "skipat r=0"}, 5.0, judged)
    shown = text(solution_table(Solution([proven], [likely], [({"a": "relu"}, 8.0)], 10.0)))
    for row in ("proven", "2.500x", "on the selection", "about 2.00x", "predicted", "about 1.25x"):
        assert row in shown
    assert "1.00%, 2.00%" in shown and "skip r=0" in shown


def test_choices_with_and_without_numbers():
    rows = [
        Verdict("hydra", 0.5, 2.0, 0.25, 3, "taken by the best plan"),
        Verdict("relu", None, None, None, 0, "not legal: SINK"),
    ]
    shown = text(choice_table("blocks.0", rows))
    assert "choices at blocks.0" in shown and "2 ms" in shown and "not legal: SINK" in shown


def test_differences_of_all_kinds():
    ratio = {"median": 1.5, "low": 1.4, "high": 1.6, "pairs": 9}
    found = {
        "settings": {"forms": [["x" * 200], ["y"]]},
        "device": {},
        "versions": {},
        "facts": {"ceiling_ratio": [ratio, None], "floor": [0.0123456, 0.5]},
        "best": ["abc", None],
        "forms": {"a": ["hydra", "softmax"]},
    }
    shown = text(difference_table(["r", "s"], found))
    for part in ("...", "1.500 [1.400, 1.600]", "0.01235", "best plan", "hydra", "facts: floor"):
        assert part in shown
