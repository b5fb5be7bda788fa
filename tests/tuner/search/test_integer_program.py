"""The integer program and the papers' recipes."""

from __future__ import annotations

from attnpass.tuner.search.integer_program import front, recipes


def test_front_takes_least_damage_for_each_saving():
    damage = {"a": {"softmax": 0.0, "hydra": 5.0}, "b": {"softmax": 0.0, "hydra": 1.0}}
    saving = {"a": {"softmax": 0.0, "hydra": 1.0}, "b": {"softmax": 0.0, "hydra": 1.0}}
    found = front(damage, saving, points=2)
    assert found == [(("a", "softmax"), ("b", "hydra")), (("a", "hydra"), ("b", "hydra"))]


def test_front_never_takes_what_costs_time_for_nothing():
    damage = {"a": {"softmax": 0.0, "relu": 1.0, "hydra": 2.0}}
    saving = {"a": {"softmax": 0.0, "relu": -1.0, "hydra": 1.0}}
    assert front(damage, saving) == [(("a", "hydra"),)]


def test_recipes_are_the_papers_plans():
    sites = [f"b{i}" for i in range(12)]
    legal = {s: (["hydra"] if s == "b0" else ["hydra", "skipat r=0"]) for s in sites}
    found = recipes(sites, legal)
    skipped = [[i for i, s in enumerate(sites) if plan[s] == "skipat r=0"] for plan in found]
    assert [3, 4, 5, 6, 7, 8] in skipped
    last_two = {s: "hydra" if s in ("b10", "b11") else "softmax" for s in sites}
    assert last_two in found


def test_a_model_without_sites_has_no_front():
    assert front({}, {}) == []
