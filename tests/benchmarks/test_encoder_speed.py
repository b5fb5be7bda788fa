"""The plans that are timed are those that their names say."""

from __future__ import annotations

from scripts import encoder_speed, minilm


def test_the_plans_that_are_timed_are_what_their_names_say():
    made = encoder_speed.plans(encoder_speed._task(8))
    forms = {name: [e.form for e in plan.sites.values()] for name, plan in made.items()}
    around = ["sigmoid"] * 2 + ["skipat"] * 3 + ["sigmoid"]
    assert forms["sigmoid"] == ["sigmoid"] * 6 and forms["skipat in half, else sigmoid"] == around
    assert forms["skipat in half"] == [x.replace("sigmoid", "softmax") for x in around]
    ids, keep = encoder_speed._task(8).example
    assert ids.shape == (minilm.BATCH, 8) and bool(keep.all())
