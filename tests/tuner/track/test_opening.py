"""What is asked for is opened; what cannot be opened is one line, and the run goes on."""

from __future__ import annotations

import pytest
from rows_of_plans import ROWS, inspected

from attnpass.errors import MissingDependencyError
from attnpass.tuner.track import open_observers, opening


def test_nothing_asked_for_is_nobody():
    assert open_observers(inspected(), print, storage="", mlflow="").observers == []


@pytest.mark.parametrize(
    "storage", ["/no/such/folder/s.db", "nonsense://x", "mysql://u:secret@h/d"]
)
def test_a_storage_that_cannot_be_opened_is_one_line(storage):
    said = []
    found = open_observers(inspected(), said.append, storage=storage, mlflow="")
    found.judged(ROWS[0])
    (line,) = said
    assert line.startswith("--storage failed, the run goes on without it: ")
    assert "secret" not in line and "\n" not in line


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'attnpass\[mlflow\]'"):
        open_observers(inspected(), print, storage="", mlflow="runs")
