"""The command gc: what it says is what it does."""

from __future__ import annotations

import json

import pytest
import torch
from tuning import run

from attnpass import environment, fingerprint
from attnpass.store import Store, ago

HERE = {
    "kernels": fingerprint.kernels_digest(),
    "recovery": fingerprint.recovery_digest(),
    "torch": torch.__version__,
    "protocol": environment.PROTOCOL,
}


@pytest.fixture
def path(tmp_path):
    """A database with a measurement of now, one of long ago, and one of another installation."""
    found = tmp_path / "a.db"
    with Store(found) as store:
        for name, context in (("new", {}), ("old", {"x": 1}), ("other", {"torch": "1.0"})):
            store.put("accuracy", name, {**HERE, **context}, {"scores": [1.0]})
        with store.transaction():
            store.db.execute(
                "UPDATE measurements SET created = ? WHERE subject = 'old'", [ago(100 * 86400)]
            )
    return found


def left(path) -> set[str]:
    with Store(path, read=True) as store:
        return {r["subject"] for r in store.db.query("SELECT subject FROM measurements")}


def test_another_installations_measurements_go(path):
    dry = json.loads(run("gc", "--dry-run", "--json", db=path).stdout)
    assert left(path) == {"new", "old", "other"}
    done = json.loads(run("gc", "--json", db=path).stdout)
    assert left(path) == {"new", "old"}
    assert dry["measurements"] == done["measurements"] == 1
    assert dry["reasons"] == done["reasons"] == {"torch": 1}
    assert dry["dry_run"] and not done["dry_run"] and done["compacted"]


def test_old_measurements_go_too(path):
    text = run("gc", "--older-than", "90d", "--dry-run", db=path).stdout
    assert "2 measurements, 0 tiles (torch: 1, age: 1)" in text or "age: 1, torch: 1" in text
    assert "bytes would be freed" in text
    text = run("gc", "--older-than", "90d", db=path).stdout
    assert text.startswith("2 measurements") and " bytes freed" in text and left(path) == {"new"}


@pytest.mark.parametrize("age", ["soon", "-1d", "nan", "inf", "9e99d"])
def test_an_age_that_is_none_is_one_line(path, age):
    found = run("gc", "--older-than", age, db=path)
    assert found.returncode == 1 and len(found.stderr.strip().splitlines()) == 1
    assert left(path) == {"new", "old", "other"}
