"""Files that are read are heard of; those that change are named."""

from __future__ import annotations

import importlib
import json
import os
import sqlite3
import sys
from pathlib import Path

import numpy as np

from attnpass.fingerprint import changed_file, digests_of, files_read
from attnpass.fingerprint.reads import LARGE


def test_every_way_to_open_a_file_is_heard(tmp_path, monkeypatch):
    names = [tmp_path / n for n in "abcdef"]
    for path in names:
        path.write_text("1")
    monkeypatch.chdir(tmp_path)
    with files_read() as found:
        open("a").close()
        Path("b").read_text()
        np.loadtxt("c")
        os.close(os.open(b"d", os.O_RDONLY))
        open("e", "r+").close()
        sqlite3.connect("f").close()
    assert set(map(str, names)) <= found
    with files_read() as later:
        pass
    open("a").close()
    assert not later


def test_what_the_work_writes_first_is_its_own(tmp_path):
    with files_read() as found, files_read() as inner:
        (tmp_path / "log").write_text("x")
        (tmp_path / "log").read_text()
    assert not {x for x in found | inner if x.startswith(str(tmp_path))}


def test_a_module_that_is_imported_counts_as_its_source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (tmp_path / "read_when_called.py").write_text("K = 1\n")
    for _ in range(2):  # the second time from its compiled file
        with files_read() as found:
            importlib.import_module("read_when_called")
        del sys.modules["read_when_called"]
        digests = digests_of(found)
        assert str(tmp_path / "read_when_called.py") in digests


def test_a_file_that_changes_appears_or_goes_is_named(tmp_path):
    path, missing = tmp_path / "a", tmp_path / "b"
    path.write_text("1")
    known = digests_of({str(path), str(missing), str(tmp_path), json.__file__, "/proc/cpuinfo"})
    assert changed_file(known) == "" and set(known) >= {str(path), str(missing)}
    assert json.__file__ not in known and "/proc/cpuinfo" not in known
    missing.write_text("1")
    assert changed_file(known) == str(missing)
    missing.unlink()
    path.write_text("2")
    assert changed_file(known) == str(path)
    path.unlink()
    assert changed_file(known) == str(path)


def test_a_large_file_is_known_without_being_read(tmp_path):
    path = tmp_path / "large"
    with open(path, "wb") as file:
        file.truncate(LARGE)
    known = digests_of([str(path)])
    os.utime(path, (1, 1))
    assert changed_file(known) == str(path)
