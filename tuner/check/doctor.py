"""The environment: the parts that are there, those that are missing, and how to get them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import torch

from attnpass import environment
from attnpass.errors import AttnpassError
from attnpass.kernels.cpu import build, launch
from attnpass.store import Store

PACKAGES = (
    ("triton", "", "GPU kernels"),
    ("sklearn", "demo", "digits task"),
    ("matplotlib", "plots", "pictures"),
    ("optuna_dashboard", "dashboard", "a study of tune --storage in a browser"),
    ("mlflow", "mlflow", "tune --mlflow"),
    ("ray", "ray", "tune --ray"),
)
"""Optional packages: name, extra of ours that installs it, and its use."""


@dataclass(frozen=True)
class Finding:
    """One part of the environment.

    Attributes:
        what: its name. found: its version or state. ok: whether it is there.
        needed: whether attnpass fails without it. cure: how to get it.
    """

    what: str
    found: Any
    ok: bool = True
    needed: bool = False
    cure: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        return asdict(self)


def examine(db: str | None) -> list[Finding]:
    """The state of this machine and of the database at ``db``; needs none of them to be right."""
    facts = {**environment.versions(), **environment.device()}
    return [
        *(Finding(name, value, needed=True) for name, value in facts.items()),
        _compiler(),
        *_kernels(),
        *_packages(),
        _database(db),
    ]


def _compiler() -> Finding:
    found = next((c for c in ("g++", "clang++", "c++") if shutil.which(c)), "")
    cure = "inductor needs one on the CPU: apt-get install g++"
    return Finding("C++ compiler", found or "none", bool(found), True, cure)


def _kernels() -> Iterator[Finding]:
    why = launch.refusal("pointwise")
    cure = "plain torch operations run instead; sigmoid and relu are then slower than SDPA"
    yield Finding("C++ kernels", why or build.instruction_set(), why is None, cure=cure)
    there = torch.cuda.is_available()
    cure = "CPU only: Triton kernels run on a GPU or under TRITON_INTERPRET=1"
    yield Finding("GPU", torch.cuda.get_device_name() if there else "none", there, cure=cure)


def _packages() -> Iterator[Finding]:
    for module, extra, use in PACKAGES:
        cure = f"pip install {f'attnpass[{extra}]' if extra else module}"
        there = find_spec(module) is not None
        yield Finding(f"{module} ({use})", "installed" if there else "none", there, cure=cure)


def _database(db: str | None) -> Finding:
    try:
        with Store(db, read=True) as store:
            found = f"{store.path} ({store.count_runs()} runs)"
    except AttnpassError as error:
        return Finding("database", str(error), False, True, "--db FILE or $ATTNPASS_DB")
    return Finding("database", found, needed=True)
