"""The CPU kernels as programs of their own, in the place of the libraries: see ``chosen``."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import struct
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from attnpass.kernels.cpu import build, launch

PROBLEMS = {
    "pointwise": "attnpass::Forward",
    "pointwise_backward": "attnpass::Backward",
    "hydra": "attnpass::Problem",
    "hydra_backward": "attnpass::Problem",
}
"""The struct that each entry takes."""


@dataclass(frozen=True)
class Way:
    """How such a program is built and run."""

    compiler: str
    flags: tuple[str, ...]
    runner: tuple[str, ...] = ()


def chosen() -> Way | None:
    """What the environment asks for.

    ``ATTNPASS_INSTRUCTIONS=neon`` on another machine: compiled for aarch64 and run by an emulator
    (Debian's ``g++-aarch64-linux-gnu`` and ``qemu-user``). ``ATTNPASS_SANITIZE=1``: for this
    machine, and every access to memory and every undefined operation is watched.
    """
    if os.environ.get("ATTNPASS_SANITIZE") == "1":
        where = Path(torch.__file__).parent / "lib"
        linked = (f"-L{where}", f"-Wl,-rpath,{where}", "-ltorch_cpu", "-lc10")
        watched = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1")
        return Way("g++", (*build.INSTRUCTIONS[build.instruction_set()], *watched, *linked))
    if os.environ.get("ATTNPASS_INSTRUCTIONS") == "neon" and platform.machine() == "x86_64":
        flags = (*build.INSTRUCTIONS["neon"], "-static")
        return Way("aarch64-linux-gnu-g++", flags, ("qemu-aarch64",))
    return None


def program(name: str, entry: str) -> Path:
    """The entry of a library as a program."""
    way = chosen()
    assert way is not None
    parts = (*build.SHARED, *(x for x in build.PARTS[name] if "operators" not in x))
    text = "".join((build.HERE / part).read_text() for part in parts)
    text += Path(__file__).with_suffix(".cpp").read_text()
    flags = [
        *(f for f in build.FLAGS if f not in ("-shared", "-fPIC")),
        *(f"-DENTRY={entry}", f"-DPROBLEM={PROBLEMS[entry]}"),
        f"-I{Path(torch.__file__).parent}/include",
        *way.flags,
    ]
    key = hashlib.sha256(repr((text, flags)).encode()).hexdigest()[:16]
    made = build.cache() / f"apart-{entry}-{key}"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        source, out = (made.with_name(f"{made.name}.{os.getpid()}{x}") for x in (".cpp", ".out"))
        source.write_text(text)
        subprocess.run([way.compiler, str(source), *flags, "-o", str(out)], check=True)
        source.unlink()
        out.replace(made)
    return made


def run_kernel(
    name: str, entry: str, numbers: Sequence[float], tensors: Iterable[Tensor | None]
) -> bool:
    """As ``launch.run_kernel``, by a program: memory goes there and comes back."""
    held = list(tensors)
    arrays = [n for x in held for n in launch._array(x)]
    head = f"{len(numbers) - 1}qd"
    problem = struct.pack(f"{head}{len(arrays)}q", *numbers, *arrays)
    stores: dict[int, int] = {}  # where a storage begins, and its size
    pointers = []
    for i, x in enumerate(held):
        if x is not None and x.numel() > 0:
            memory = x.untyped_storage()
            stores[memory.data_ptr()] = memory.nbytes()
            order = list(stores).index(memory.data_ptr())
            place = struct.calcsize(head) + 8 * 6 * i
            pointers.append((place, order, x.data_ptr() - memory.data_ptr()))
    sent = [struct.pack("q", len(problem)), problem, struct.pack("q", len(stores))]
    for at, size in stores.items():
        sent += [struct.pack("q", size), ctypes.string_at(at, size)]
    sent += [struct.pack("q", len(pointers)), *(struct.pack("3q", *p) for p in pointers)]
    way = chosen()
    assert way is not None
    command = [*way.runner, str(program(name, entry))]
    # 1 is a kernel that refuses, so a fault must end otherwise
    options = {"ASAN_OPTIONS": "detect_leaks=0:exitcode=99", "UBSAN_OPTIONS": "exitcode=99"}
    env = {**os.environ, **options}
    done = subprocess.run(command, input=b"".join(sent), stdout=subprocess.PIPE, env=env)
    if done.returncode == 1 and entry == "pointwise_backward" and _far(held):
        return False
    assert done.returncode == 0, f"{entry} ended with {done.returncode}"
    begin = 0
    for at, size in stores.items():
        ctypes.memmove(at, done.stdout[begin : begin + size], size)
        begin += size
    assert begin == len(done.stdout)
    return True


def _far(tensors: list[Tensor | None]) -> bool:
    """Whether the seventh, where softmax has its log-sum-exp, is so far from 0 to be refused."""
    lse = tensors[6]
    return lse is not None and bool(((lse.abs() > 2**11) & lse.isfinite()).any())
