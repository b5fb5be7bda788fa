"""Fixtures of the tests of plans."""

import logging

import pytest
from plans import build, data, shaken

from attnpass import Plan


@pytest.fixture
def warned(caplog):
    caplog.set_level(logging.WARNING, logger="attnpass")

    def read():
        return [r.getMessage() for r in caplog.records if r.name == "attnpass"]

    return read


@pytest.fixture
def saved(tmp_path):
    """A model, its plan, the plan's file."""
    model = build()
    plan = shaken(Plan.create(model, data(), form="sigmoid"))
    return model, plan, plan.save(tmp_path / "plan.json")
