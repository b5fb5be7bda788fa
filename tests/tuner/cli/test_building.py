"""The command that compiles the kernels ahead."""

from __future__ import annotations

import json
import shutil

import pytest
from tuning import run

from attnpass.kernels.cpu import build


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles")
def test_build_says_which_files_serve(tmp_path):
    for name in build.PARTS:  # what is there already is not compiled again
        shutil.copy(build.library(name, build.instruction_set()), tmp_path)
    done = run("build", "--folder", str(tmp_path), "--json", db=tmp_path / "a.db")
    found = json.loads(done.stdout)
    assert found["instructions"] == [build.instruction_set()]
    assert sorted(found["files"]) == sorted(map(str, tmp_path.glob("*.so")))
    assert done.stderr == ""


def test_without_a_compiler_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    done = run("build", "--folder", str(tmp_path), db=tmp_path / "a.db")
    assert done.returncode == 1
    assert "expected a C++ compiler (no-such-compiler), found none" in done.stderr
