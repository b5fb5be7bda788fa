"""Which workers may be compared: those whose latencies depend on equal things."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from attnpass import environment
from attnpass.errors import OptionError
from attnpass.text import listed

Device = Mapping[str, Any]
"""All that the latencies of a worker depend on beside the task."""


def identity(kind: str, index: int = 0) -> dict[str, Any]:
    """The device of this process, its instructions, threads, torch, kernels and switches.

    Args:
        kind: ``cpu`` or ``cuda``. index: of the GPU among those that are visible.
    """
    found = environment.kernel_context(kind) | {"switches": environment.switches()}
    if kind == "cuda":
        found["device"] = torch.cuda.get_device_name(index)
    return found


def described(device: Device) -> str:
    """The device in a few words."""
    threads = device["threads"]
    words = [device["device"], device.get("isa") or f"CUDA {device.get('driver')}"]
    words += ["1 thread" if threads == 1 else f"{threads} threads", f"torch {device['torch']}"]
    return ", ".join(str(w) for w in words)


def class_of(device: Device) -> str:
    """A text that is equal for workers whose latencies may be compared."""
    return json.dumps(device, sort_keys=True)


def choose_class(devices: Sequence[Device], own: Device, asked: str = "") -> str:
    """The class that a run measures on: the most common one.

    Where several are, it is that of the coordinator's device ``own`` if it is among them, else
    that of the first worker. ``asked`` is a part of the description of those to choose from.

    Raises:
        OptionError: no worker fits ``asked``.
    """
    fit = [d for d in devices if asked.lower() in described(d).lower()]
    if not fit:
        told = listed(sorted({described(d) for d in devices}))
        raise OptionError(f"expected a worker whose device is like {asked!r}, got: {told}")
    counts = Counter(class_of(d) for d in fit)
    most = max(counts.values())
    first = [c for c in counts if counts[c] == most]
    return class_of(own) if class_of(own) in first else first[0]


def differing(one: Device, other: Device) -> list[str]:
    """The fields in which two devices differ."""
    return sorted(k for k in {*one, *other} if one.get(k) != other.get(k))
