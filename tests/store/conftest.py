"""Fixtures of the tests of the database."""

import pytest


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.db"
