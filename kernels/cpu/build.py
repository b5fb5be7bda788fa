"""Compiles the C++ libraries of the CPU kernels, once for each instruction set.

A library is known by its source, flags, version of torch and instruction set: one that a wheel
brought serves without a compiler, any other is built at first use and kept. It enters the cache
when it is whole, under a lock, so that no other process reads half of it or does the same work.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from platformdirs import user_cache_path

from attnpass.errors import BuildError
from attnpass.torch_internals import cpu_extensions

HERE = Path(__file__).parent

SHARED = ("vector_cpu.h", "attention_cpu.h", "product_cpu.h")

PARTS = {
    "pointwise": ("pointwise_cpu.cpp", "pointwise_short_cpu.cpp", "pointwise_operators_cpu.cpp"),
    "pointwise_backward": ("pointwise_backward_cpu.cpp",),
    "hydra": ("hydra_cpu.cpp",),
}
"""The sources of each library, behind those that all share."""

INSTRUCTIONS = {
    "avx512+bf16": ("-march=x86-64-v4", "-mavx512bf16", "-DCPU_CAPABILITY_AVX512"),
    "avx512": ("-march=x86-64-v4", "-DCPU_CAPABILITY_AVX512"),
    "avx2": ("-march=x86-64-v3", "-DCPU_CAPABILITY_AVX2"),
    "neon": ("-march=armv8-a", "-DCPU_CAPABILITY_NEON"),
}
"""The compiler's flags for each instruction set."""

FLAGS = (
    *("-O3", "-std=c++20", "-fPIC", "-shared", "-fopenmp", "-DNDEBUG", "-w"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
    "-DC10_USING_CUSTOM_GENERATED_MACROS",
)


@functools.cache
def instruction_set() -> str:
    """The one of ``INSTRUCTIONS`` that serves this processor, as torch sees it.

    ``$ATTNPASS_INSTRUCTIONS`` names another that the processor has, to try it.

    Raises:
        BuildError: none does, or the variable names none.
    """
    asked = os.environ.get("ATTNPASS_INSTRUCTIONS")
    if asked:
        if asked not in INSTRUCTIONS:
            known = ", ".join(INSTRUCTIONS)
            raise BuildError(f"expected ATTNPASS_INSTRUCTIONS to be one of {known}, got {asked}")
        return asked
    capability = torch.backends.cpu.get_cpu_capability()
    if platform.machine() in ("aarch64", "arm64"):
        return "neon"
    if capability == "AVX512":
        return "avx512+bf16" if "bf16" in cpu_extensions() else "avx512"
    if capability == "AVX2":
        return "avx2"
    raise BuildError(f"expected a CPU with AVX2, AVX-512 or NEON, got {capability}")


def family() -> list[str]:
    """The instruction sets that processors of this machine's architecture have."""
    arm = instruction_set() == "neon"
    return [name for name in INSTRUCTIONS if (name == "neon") == arm]


def source(name: str) -> str:
    """The source of a library of ``PARTS``."""
    return "".join((HERE / part).read_text() for part in (*SHARED, *PARTS[name]))


def library(name: str, instructions: str) -> Path:
    """A library of ``PARTS``: what a wheel brought or was built before, else built now.

    Raises:
        BuildError: there is no compiler, or it fails.
    """
    file = _file_name(name, instructions)
    for folder in (HERE / "built", cache()):
        if (folder / file).exists():
            return folder / file
    return build([name], instructions, cache())[0]


def load(name: str) -> ctypes.CDLL:
    """A library of ``PARTS`` for this processor.

    Raises:
        BuildError: there is none for it, there is no compiler, or it fails.
    """
    return ctypes.CDLL(str(library(name, instruction_set())))


def build(names: Iterable[str], instructions: str, folder: Path) -> list[Path]:
    """Libraries of ``PARTS`` in a folder, those that are missing compiled side by side.

    While they are, one line on stderr grows.

    Raises:
        BuildError: there is no compiler, it fails, or the folder cannot be written.
    """
    targets = {folder / _file_name(name, instructions): name for name in names}
    missing = [target for target in targets if not target.exists()]
    if not missing:
        return list(targets)
    begun = time.perf_counter()

    def one(target: Path) -> None:
        with _locked(target):
            if not target.exists():
                compile_source(source(targets[target]), instructions, target)
        _tell(f" {targets[target]} {time.perf_counter() - begun:.0f} s")

    _tell(f"attnpass: building CPU kernels for {instructions}, once:")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(one, missing))
    except OSError as error:
        raise BuildError(f"expected to keep the CPU kernels in {folder}, got {error}") from error
    finally:
        _tell("\n")
    return list(targets)


def compile_source(text: str, instructions: str, target: Path) -> None:
    """A library of one source, moved to ``target`` when it is whole.

    Raises:
        BuildError: there is no compiler, or it fails.
    """
    compiler, torch_folder = _compiler(), Path(torch.__file__).parent
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        main, out = Path(folder, "main.cpp"), Path(folder, "main.so")
        main.write_text(text)
        command = [
            *(*compiler, *FLAGS, *INSTRUCTIONS[instructions], str(main), "-o", str(out)),
            *(f"-I{torch_folder}/include", f"-L{torch_folder}/lib"),
            *("-ltorch_cpu", "-lc10"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode != 0:
            lines = done.stderr.splitlines() or [f"exit status {done.returncode}"]
            why = next((line for line in lines if "error" in line), lines[0])
            raise BuildError(f"expected {compiler[0]} to compile the CPU kernels, got: {why}")
        os.replace(out, target)


def cache() -> Path:
    """Where libraries that were built here are kept.

    Raises:
        BuildError: no such folder is this user's own.
    """
    folders = (
        user_cache_path("attnpass") / "kernels",
        Path(tempfile.gettempdir(), f"attnpass-{os.getuid()}"),
    )
    for folder in folders:
        if _own(folder):
            return folder
    raise BuildError(f"expected to keep the CPU kernels in {folders[0]}, which cannot be written")


def _own(folder: Path) -> bool:
    """Whether a folder can be written, and nobody else has made it."""
    if folder.exists():
        return os.access(folder, os.W_OK) and folder.stat().st_uid == os.getuid()
    return os.access(next(p for p in folder.parents if p.exists()), os.W_OK)


def _file_name(name: str, instructions: str) -> str:
    """With all that decides what a library does, and whether this torch can run it."""
    version = torch.__version__.partition("+")[0]
    known = repr((source(name), FLAGS, INSTRUCTIONS[instructions], version))
    return f"{name}-{instructions}-{hashlib.sha256(known.encode()).hexdigest()[:16]}.so"


def _compiler() -> list[str]:
    given = shlex.split(os.environ.get("CXX", ""))
    names = given[:1] or ["g++", "clang++", "c++"]
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        raise BuildError(f"expected a C++ compiler ({' or '.join(names)}), found none")
    return [found, *given[1:]]


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One process at a time; the lock of a process that dies is free again."""
    with Path(f"{target}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _tell(piece: str) -> None:
    sys.stderr.write(piece)
    sys.stderr.flush()
