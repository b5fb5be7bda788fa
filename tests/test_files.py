"""A file is replaced whole or not at all."""

from __future__ import annotations

import pytest

from attnpass.files import replace_file


def test_a_file_is_replaced_by_the_written_one(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    seen = []

    def write(half):
        seen.append((half.parent, half.exists(), path.read_text()))
        half.write_text("new")

    replace_file(path, write)
    assert path.read_text() == "new"
    assert seen == [(tmp_path, False, "old")], "written beside it, the old content still there"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    def write(half):
        half.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(path, write)
    assert path.read_text() == "old"
