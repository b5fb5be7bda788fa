"""Libraries of the CPU kernels: found or compiled once, whole, and refused in one line."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from attnpass.errors import BuildError
from attnpass.kernels.cpu import build

TWICE = 'extern "C" int attnpass_twice(int x) { return 2 * x; }\n'

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="compiles")


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """One library whose source is one function."""
    monkeypatch.setattr(build, "source", lambda name: TWICE)
    monkeypatch.setattr(build, "cache", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def here() -> str:
    try:
        return build.instruction_set()
    except BuildError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("machine", "capability", "extensions", "want"), [
    ("x86_64", "AVX512", ("bf16", "amx"), "avx512+bf16"), ("x86_64", "AVX512", (), "avx512"),
    ("x86_64", "AVX2", ("bf16",), "avx2"), ("aarch64", "DEFAULT", (), "neon"),
])  # fmt: skip
def test_instruction_set(monkeypatch, machine, capability, extensions, want):
    monkeypatch.delenv("ATTNPASS_INSTRUCTIONS", raising=False)
    monkeypatch.setattr(build.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(build, "cpu_extensions", lambda: extensions)
    assert build.instruction_set.__wrapped__() == want


def test_another_instruction_set_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("ATTNPASS_INSTRUCTIONS", "avx2")
    assert build.instruction_set.__wrapped__() == "avx2"
    monkeypatch.setenv("ATTNPASS_INSTRUCTIONS", "sse")
    with pytest.raises(BuildError, match=r"one of avx512\+bf16, avx512, avx2, neon, got sse"):
        build.instruction_set.__wrapped__()


def test_a_processor_without_vectors_is_refused(monkeypatch):
    monkeypatch.delenv("ATTNPASS_INSTRUCTIONS", raising=False)
    monkeypatch.setattr(build.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    with pytest.raises(BuildError, match="expected a CPU with AVX2, AVX-512 or NEON, got DEFAULT"):
        build.instruction_set.__wrapped__()


@needs_compiler
def test_a_library_is_built_once_and_one_line_says_so(tiny, capsys):
    made = build.library("hydra", here())
    assert ctypes.CDLL(str(made)).attnpass_twice(21) == 42
    said = capsys.readouterr().err
    assert said.startswith("attnpass: building CPU kernels for") and said.count("\n") == 1
    before = made.stat().st_mtime_ns
    assert build.library("hydra", here()) == made
    assert made.stat().st_mtime_ns == before and capsys.readouterr().err == ""


@needs_compiler
def test_what_a_wheel_brought_needs_no_compiler(tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(build, "HERE", tmp_path)
    (brought,) = build.build(["hydra"], here(), tmp_path / "built")
    monkeypatch.setenv("CXX", "no-such-compiler")
    capsys.readouterr()
    assert build.library("hydra", here()) == brought
    assert capsys.readouterr().err == "" and not tiny.exists()


@pytest.mark.parametrize("change", ["source", "flags", "torch"])
def test_whatever_decides_the_library_is_in_its_name(monkeypatch, change):
    before = build._file_name("hydra", "avx2")
    assert build._file_name("hydra", "avx512") != before
    if change == "source":
        monkeypatch.setattr(build, "source", lambda name: TWICE)
    if change == "flags":
        monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
    if change == "torch":
        monkeypatch.setattr(torch, "__version__", "2.99.0")
    assert build._file_name("hydra", "avx2") != before


def test_no_compiler(tiny, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match=r"expected a C\+\+ compiler \(no-such-compiler\), found"):
        build.library("hydra", "avx2")


@pytest.mark.parametrize(("script", "why"), [
    ("echo main.cpp: error: no such header >&2; exit 1", "got: main.cpp: error: no such header"),
    ("exit 3", "got: exit status 3"),
])  # fmt: skip
def test_a_compiler_that_fails(tiny, monkeypatch, tmp_path, script, why):
    compiler = tmp_path / "failing"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(BuildError, match=why):
        build.library("hydra", "avx2")
    assert not list(tiny.glob("*.so"))


COMPILER = """#!/bin/sh
# where $HALF is set: half a library, and then the process that compiles is killed
if [ -n "$HALF" ]; then
    while [ "$1" != "-o" ]; do shift; done
    echo half > "$2"
    kill -9 $PPID
    exit 1
fi
exec g++ "$@"
"""

LOAD = f"""
from pathlib import Path
import ctypes, sys
from attnpass.kernels.cpu import build
build.source = lambda name: {TWICE!r}
(made,) = build.build(["hydra"], sys.argv[1], Path(sys.argv[2]))
print(ctypes.CDLL(str(made)).attnpass_twice(21))
"""


@needs_compiler
def test_processes_that_die_or_race(tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    env = {**os.environ, "CXX": str(compiler)}

    def start(**more):
        command = [sys.executable, "-c", LOAD, here(), str(tmp_path / "cache")]
        return subprocess.Popen(command, env=env | more, stdout=subprocess.PIPE, text=True)

    killed = start(HALF="1")
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    both = [start(), start()]
    assert [process.communicate()[0] for process in both] == ["42\n", "42\n"]
    assert len(list((tmp_path / "cache").glob("*.so"))) == 1


def test_family_is_all_that_this_kind_of_machine_may_have():
    assert here() in build.family()
    assert build.family() in (["neon"], ["avx512+bf16", "avx512", "avx2"])


def test_a_folder_that_is_not_ones_own_is_not_the_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    assert build.cache() == tmp_path / "attnpass" / "kernels"
    theirs = tmp_path / "attnpass" / "kernels"
    theirs.mkdir(parents=True)
    user = os.getuid()
    monkeypatch.setattr(build.os, "getuid", lambda: user + 1)
    assert build.cache() == tmp_path / "temporary" / f"attnpass-{user + 1}"
    monkeypatch.setattr(build.os, "access", lambda path, mode: False)
    with pytest.raises(BuildError, match="which cannot be written"):
        build.cache()
