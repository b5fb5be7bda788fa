"""The CPU kernels compiled for aarch64 and run by an emulator, in the place of this machine's.

Needs Debian's ``g++-aarch64-linux-gnu`` and ``qemu-user``.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import struct
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from attnpass.kernels.cpu import build, launch

TOOLS = ("aarch64-linux-gnu-g++", "qemu-aarch64")

PROBLEMS = {
    "pointwise": "attnpass::Forward",
    "pointwise_backward": "attnpass::Backward",
    "hydra": "attnpass::Problem",
    "hydra_backward": "attnpass::Problem",
}
"""The struct that each entry takes."""


def missing() -> list[str]:
    """The tools that are not installed."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def program(name: str, entry: str) -> Path:
    """The entry of a library as a program for aarch64."""
    parts = (*build.SHARED, *(x for x in build.PARTS[name] if "operators" not in x))
    text = "".join((build.HERE / part).read_text() for part in parts)
    text += Path(__file__).with_suffix(".cpp").read_text()
    flags = [
        *(f for f in build.FLAGS if f not in ("-shared", "-fPIC")),
        *build.INSTRUCTIONS["neon"],
        *(f"-DENTRY={entry}", f"-DPROBLEM={PROBLEMS[entry]}", "-static"),
        f"-I{Path(torch.__file__).parent}/include",
    ]
    key = hashlib.sha256(repr((text, flags)).encode()).hexdigest()[:16]
    made = build.cache() / f"emulated-{entry}-{key}"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        source, out = (made.with_name(f"{made.name}.{os.getpid()}{x}") for x in (".cpp", ".out"))
        source.write_text(text)
        subprocess.run([TOOLS[0], str(source), *flags, "-o", str(out)], check=True)
        source.unlink()
        out.replace(made)
    return made


def run_kernel(
    name: str, entry: str, numbers: Sequence[float], tensors: Iterable[Tensor | None]
) -> bool:
    """As ``launch.run_kernel``, by the emulator: memory goes there and comes back."""
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
    command = [TOOLS[1], str(program(name, entry))]
    done = subprocess.run(command, input=b"".join(sent), stdout=subprocess.PIPE)
    assert done.returncode == 0, f"{entry} ended with {done.returncode}"
    begin = 0
    for at, size in stores.items():
        ctypes.memmove(at, done.stdout[begin : begin + size], size)
        begin += size
    assert begin == len(done.stdout)
    return True
