"""Stored scores are served where they are reproduced, and else say why not."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch
from tiny_tasks import tiny
from tuning import QUIET, opened, rows

from attnpass.store import Store
from attnpass.tuner.search import inspection
from attnpass.tuner.search.baseline import measure_baseline
from attnpass.tuner.search.baseline_row import BaselineRow, find_baseline
from attnpass.tuner.search.canary import Canary
from attnpass.tuner.search.session import Session

KNOB = "".join(["KNOB_", "OF_THE_TEST"])  # no string in the sources is this name

ROW = BaselineRow(
    [10] * 6,
    [1.0] * 60,
    [1.0] * 60,
    Canary([0, 5], [1.0] * 20, [1.0, 0.0, 1.0, 0.0], 1e-6),
    False,
    "m",
)


def test_a_row_is_stored_as_it_is():
    assert BaselineRow.from_dict(ROW.as_dict()) == ROW
    assert ROW.items([0, 5]) == [*range(10), *range(50, 60)]


@pytest.mark.parametrize(
    "change",
    [
        {"sizes": None},
        {"sizes": [10] * 5},
        {"selection": [1.0] * 59},
        {"held_out": ["x"] * 60},
        {"canary": {}},
        {"canary": {**ROW.canary.as_dict(), "batches": [7]}},
        {"canary": {**ROW.canary.as_dict(), "scores": [1.0]}},
    ],
)
def test_a_damaged_row_is_refused(change):
    with pytest.raises((KeyError, TypeError, ValueError, IndexError)):
        BaselineRow.from_dict(ROW.as_dict() | change)


def scored(output, target):
    with open(os.environ["FILE_OF_" + "THE_TEST"]) as file:
        scale = float(file.read())
    scale *= float(os.environ[KNOB])
    return (output.argmax(1) == target).double() * scale


@pytest.fixture(scope="module")
def inspected(tmp_path_factory):
    """A task whose scores no key can know, inspected once."""
    folder = tmp_path_factory.mktemp("a")
    with pytest.MonkeyPatch.context() as patch, Store(folder / "a") as store:
        patch.setattr(inspection, "load_task", lambda _, limit: tiny(score=scored))
        (folder / "scale.txt").write_text("1")
        patch.setenv("FILE_OF_THE_TEST", str(folder / "scale.txt"))
        patch.setenv(KNOB, "1")
        yield opened(store)[0]


class Setting:
    """A store, what was said, and sessions that look the baseline up or measure it."""

    def __init__(self, inspected, folder, monkeypatch):
        self.patch, self.file, self.said = monkeypatch, folder / "scale.txt", []
        self.file.write_text("1")
        monkeypatch.setenv("FILE_OF_THE_TEST", str(self.file))
        monkeypatch.setenv(KNOB, "1")
        monkeypatch.setattr(QUIET, "say", lambda text, style=None: self.said.append(text))
        self.store, self.inspection = Store(folder / "a.db"), inspected

    def session(self):
        self.said.clear()
        return Session("r", self.store, QUIET)

    def baseline(self):
        return measure_baseline(self.inspection, self.session())

    def found(self):
        return find_baseline(self.inspection, self.session())

    def scores(self, score):
        """From here on the task is judged by another function, under the same key."""
        task = replace(self.inspection.task, score=score)
        self.inspection = replace(self.inspection, task=task)


@pytest.fixture
def setting(inspected, tmp_path, monkeypatch):
    found = Setting(inspected, tmp_path, monkeypatch)
    with found.store:
        yield found


def test_a_reproduced_row_is_served_and_leaves_the_store_alone(setting):
    assert setting.found() is None and setting.said == []
    first = setting.baseline()
    row, canary = setting.found()
    assert setting.said == [] and row.selection == first.selection.tolist()
    assert canary == first.canary and str(setting.file) in row.read
    before = rows(setting.store.path)
    assert torch.equal(setting.baseline().scored, first.scored)
    assert rows(setting.store.path) == before


def test_what_no_key_sees_is_measured_anew(setting):
    setting.baseline()
    setting.patch.setenv(KNOB, "0.5")
    assert setting.found() is None
    (line,) = setting.said
    assert "not reproduced (item 0: 0.5, stored 1); measured anew" in line
    assert setting.baseline().scored.tolist() == [0.5] * 60


def test_a_file_that_was_read_and_changed_is_named(setting):
    setting.baseline()
    setting.file.write_text("1.0")
    assert setting.found() is None
    (line,) = setting.said
    assert "scale.txt, which this task reads, has changed; measured anew" in line


def test_nothing_else_is_found_beside_a_new_baseline(setting):
    """Also where the run that measured it was killed, and everything is as it was again."""

    def plan_row():
        session = setting.session()
        measure_baseline(setting.inspection, session)
        return session, session.find("accuracy", "plan", setting.inspection.context)

    session, value = plan_row()
    assert value is None
    session.keep("accuracy", "plan", setting.inspection.context, {"scores": [1.0]})
    assert plan_row()[1] is not None
    for knob in ("0.5", "1"):
        setting.patch.setenv(KNOB, knob)
        assert plan_row()[1] is None
        assert [x for x in setting.said if "again" in x] == [], "one line says why"


def test_a_damaged_row_is_measured_anew(setting):
    setting.baseline()
    (row,) = setting.store.db.query("SELECT value FROM measurements")
    value = json.loads(row["value"])
    canary = value["canary"]
    for damaged in (
        {},
        {**value, "canary": {**canary, "batches": [], "scores": [], "outputs": []}},
        {**value, "canary": {**canary, "noise": 10.0}},
        {**value, "canary": {**canary, "outputs": [10**400] * len(canary["outputs"])}},
        {**value, "sizes": value["sizes"][1:]},
        {**value, "read": None},
    ):
        setting.store.db.execute("UPDATE measurements SET value = ?", [json.dumps(damaged)])
        assert setting.found() is None and "the stored accuracy is damaged" in setting.said[0]
    assert setting.baseline().scored.tolist() == [1.0] * 60


def test_random_scores_are_said_and_never_served(setting):
    setting.scores(lambda out, y: torch.rand(len(y)).double())
    assert setting.baseline().random
    assert "scores of this task are random (item 0:" in setting.said[0]
    assert setting.found() is None and "are random; measured anew" in setting.said[0]


def test_objects_without_content_are_named(setting):
    setting.inspection = replace(setting.inspection, opaque=("builtins.generator",))
    assert not setting.baseline().random
    assert "builtins.generator in this task" in setting.said[0]
