"""Plan files of a process that was killed are removed; those of others stay."""

from __future__ import annotations

import os
import subprocess

from attnpass.tuner.search.plan_files import plans_folder


def test_the_plans_of_a_process_that_was_killed_are_removed(tmp_path):
    db = tmp_path / "a[1].db"
    child = subprocess.Popen(["true"])
    child.wait()
    left, kept = (tmp_path / f"a[1].db.{i}.plans" for i in (child.pid, os.getppid()))
    other = tmp_path / f"a1.db.{child.pid}.plans"
    for folder in (left, kept, other):
        folder.mkdir()
    with plans_folder(db) as folder:
        (folder / "0.json").write_text("{}")
        assert folder.parent == tmp_path and not left.exists()
        assert kept.exists() and other.exists(), "of a process that runs, of another database"
    assert not folder.exists()
