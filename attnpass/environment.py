"""The environment of a measurement: device, instructions, threads, versions, kernel sources.

Two measurements can be compared where their environments are equal.
"""

from __future__ import annotations

import functools
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from attnpass.fingerprint import kernels_digest
from attnpass.torch_internals import cpu_extensions, pytree

NUMERIC = (
    *("ATEN_", "ONEDNN_", "DNNL_", "MKL_", "OMP_", "KMP_", "OPENBLAS_", "BLIS_", "GOMP_"),
    *("CUBLAS_", "CUDNN_", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32", "TORCH_BLAS"),
)
"""Beginnings of the environment variables that choose among implementations of one function."""

DEVICES = ("cpu", "cuda")

SETTINGS = (
    *("get_float32_matmul_precision", "are_deterministic_algorithms_enabled", "get_default_dtype"),
    *("backends.fp32_precision", "backends.opt_einsum.enabled", "backends.opt_einsum.strategy"),
    *(f"backends.mkldnn.{n}" for n in ("is_available", "enabled", "deterministic", "allow_tf32")),
    *(f"backends.mkldnn.{n}.fp32_precision" for n in ("matmul", "conv", "rnn")),
    *(f"backends.cudnn.{n}" for n in ("enabled", "benchmark", "deterministic", "allow_tf32")),
    *(f"backends.cudnn.{n}.fp32_precision" for n in ("conv", "rnn")),
    *("backends.cuda.matmul.allow_tf32", "backends.cuda.matmul.fp32_precision"),
    "backends.cuda.matmul.allow_fp16_reduced_precision_reduction",
    "backends.cuda.matmul.allow_bf16_reduced_precision_reduction",
    *(f"backends.cuda.{n}_sdp_enabled" for n in ("flash", "mem_efficient", "math", "cudnn")),
)
"""Settings of torch that choose among implementations of one function, or their precision."""

PROTOCOL = 2
"""Version of the way latency and accuracy are measured; part of every cache key."""


@functools.cache
def cpu_name() -> str:
    """The processor's name, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def device(kind: str = "cpu") -> dict[str, object]:
    """The device of a latency and its settings; equal dicts mean comparable numbers."""
    found: dict[str, object] = {"device": cpu_name(), "isa": instructions()}
    if kind == "cuda":
        found = {"device": torch.cuda.get_device_name(), "driver": torch.version.cuda}
    return {**found, "threads": torch.get_num_threads()}


def switches() -> dict[str, object]:
    """The settings of torch and of its libraries that may change a result in its last digits.

    A score can change with them: two classes may be nearly equal.
    """
    names = sorted(n for n in os.environ if n.startswith(NUMERIC))
    autocast = [[torch.is_autocast_enabled(n), str(torch.get_autocast_dtype(n))] for n in DEVICES]
    return {
        **{path: _setting(path) for path in SETTINGS},
        "autocast": autocast,
        "variables": {n: os.environ[n] for n in names},
        "python": platform.python_version(),
    }


def _setting(path: str) -> str:
    """A setting as text, also where this version of torch lacks it, or will not tell it."""
    try:
        found: Any = functools.reduce(getattr, path.split("."), torch)
        return str(found() if callable(found) else found)
    except AttributeError:
        return "absent"
    except RuntimeError:  # where the older and the newer way to set a precision were mixed
        return "refused"


@functools.cache
def instructions() -> str:
    """The CPU's vector instructions, with ``bf16`` and ``amx`` where torch can use them.

    The variable that chooses among the kernels of attnpass counts, too.
    """
    found = torch.backends.cpu.get_cpu_capability()
    asked = os.environ.get("ATTNPASS_INSTRUCTIONS")
    return "+".join([found, *cpu_extensions(), *([f"kernels {asked}"] if asked else [])])


def has_native_bfloat16(device: str) -> bool:
    """Whether a kind of device multiplies bfloat16 matrices by instructions of its own."""
    if device == "cuda":
        found: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return found
    return device == "cpu" and not {"bf16", "amx"}.isdisjoint(instructions().split("+"))


def kernel_context(kind: str = "cpu") -> dict[str, object]:
    """Everything that a measured tile depends on except for its shape class."""
    found = device(kind) | {"torch": torch.__version__, "kernels": kernels_digest()}
    found["protocol"] = PROTOCOL
    if kind == "cuda":
        found["triton"] = versions()["triton"]
    return found


def versions() -> dict[str, str]:
    """Versions of the software that decides a result, by name; ``none`` where it is absent."""
    out = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("attnpass", "triton", "optuna"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "none"
    return out


def shapes(example: object) -> list[object]:
    """Shapes and dtypes of the tensors of a call, the text of its other arguments."""
    leaves = pytree.tree_leaves(example)
    return [
        [list(x.shape), str(x.dtype)] if isinstance(x, torch.Tensor) else repr(x) for x in leaves
    ]
