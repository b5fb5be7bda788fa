"""Every step of a model in use runs the form that was chosen; ``zoo.steps`` runs all models."""

import json
import warnings

import pytest
from zoo import steps

KEPT = json.loads(steps.RESULT.read_text())["steps"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["llama generate, static cache", "dit denoise"])
def test_steps_compile_to_what_was_kept(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert steps.steps(name) == KEPT[name]


def test_the_form_runs_at_every_step_of_every_model():
    assert set(KEPT) == set(steps.MODELS)
    for name, rows in KEPT.items():
        assert len(rows) >= 3, name
        for row in rows:
            assert row["forms"] == ({"sigmoid": row["sites"]} if row["sites"] else {}), name
            assert row["graphs"] <= 1 and not row["declined"], name
    assert all(rows[-1]["graphs"] == 0 for rows in KEPT.values()), "the last step compiles nothing"
