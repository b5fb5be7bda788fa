"""A file is replaced whole or not at all, and read within limits."""

from __future__ import annotations

import os

import pytest

from attnpass.files import parse_json, read_file, reason, replace_file


def test_a_file_is_replaced_by_the_written_one(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    seen = []

    def write(half):
        seen.append((half.parent, half.read_text(), path.read_text()))
        half.write_text("new")

    replace_file(path, write)
    assert path.read_text() == "new"
    assert seen == [(tmp_path, "", "old")], "written beside it, the old content still there"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_has_the_mode_of_any_new_file(tmp_path):
    def secret(path):
        path.write_text("x")
        path.chmod(0o600)

    for replaced in range(2):
        replace_file(tmp_path / "a", secret)
        (tmp_path / f"b{replaced}").touch()
        modes = {(tmp_path / name).stat().st_mode for name in ("a", f"b{replaced}")}
        assert len(modes) == 1


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    def write(half):
        half.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path], "nor is the half there"


def test_only_regular_files_within_the_limit_are_read(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345678")
    assert read_file(path, 8) == b"12345678"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for other, why in (
        (path, "8 bytes, more than 7"),
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path / "link", "not a regular file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "none", "No such file"),
    ):
        with pytest.raises(OSError, match=why) as caught:
            read_file(other, 7)
        assert why in reason(caught.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 10**5, "nested too deeply"),
        ('{"a": ' * 10**5, "nested too deeply"),
        ('{"a": 1, "b": 2, "a": 1}', "key 'a' twice"),
        ('{"a": NaN}', "the number NaN"),
        ("[-Infinity]", "the number -Infinity"),
        ("1e999", "the number 1e999"),
        ("9" * 5000, "Exceeds the limit"),
        ("{", "Expecting"),
        (b"\xff\xfe\x00", "decode"),
    ],
)
def test_json_that_is_not_plain_is_refused(text, why):
    with pytest.raises(ValueError, match=why):
        parse_json(text)


def test_plain_json_is_taken():
    assert parse_json('{"a": [1, 2.5, null, "\\ud800"]}') == {"a": [1, 2.5, None, "\ud800"]}
