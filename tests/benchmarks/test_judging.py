"""The benchmark of judging plans, on the tiny task: its plans are scored, compiling is made up."""

from __future__ import annotations

from scripts import judging
from tuning import TINY


def test_plans_are_judged_both_ways(monkeypatch):
    asked = []

    def compiled(inspection, plan, batches):
        asked.append(plan.hash)
        return 10.0

    monkeypatch.setattr(judging, "_compiled", compiled)
    found = judging.judged(TINY, 8)
    assert found["plans"] == len(found["captured_s"]) <= 8 and found["items"] == 60
    assert len(set(asked)) == len(found["compiled_s"]) == judging.COMPILED
    rates = found["plans_per_minute"]
    assert rates["compiled"] == 6.0
    assert found["ratio"] == rates["captured"] / rates["compiled"]
