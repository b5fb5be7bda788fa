"""What the environment has, what is missing, how to get it."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from typing import Any

import torch

from attnpass import environment
from attnpass.errors import AttnpassError
from attnpass.kernels.cpu import launch


def doctor(db: str | None) -> list[dict[str, Any]]:
    """Rows of ``what, found, ok, needed, cure``."""
    rows = [
        {"what": name, "found": found, "ok": True, "needed": True, "cure": ""}
        for name, found in {**environment.versions(), **environment.device()}.items()
    ]

    def check(what: str, ok: bool, found: str, cure: str, needed: bool = False) -> None:
        rows.append({"what": what, "found": found, "ok": ok, "needed": needed, "cure": cure})

    compiler = next((c for c in ("g++", "clang++", "c++") if shutil.which(c)), "")
    check(
        "C++ compiler",
        bool(compiler),
        compiler or "none",
        "inductor needs one on the CPU: apt-get install g++",
        needed=True,
    )
    why = launch.refusal("pointwise")
    check(
        "C++ kernels",
        why is None,
        why or "AVX-512",
        "plain torch operations run instead; sigmoid and relu are then slower than SDPA",
    )
    check(
        "GPU",
        torch.cuda.is_available(),
        torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "CPU only: Triton kernels run on a GPU or under TRITON_INTERPRET=1",
    )
    for module, extra, why in (
        ("triton", "", "GPU kernels"),
        ("sklearn", "demo", "digits task"),
        ("matplotlib", "plots", "pictures"),
    ):
        cure = f"pip install {f'attnpass[{extra}]' if extra else module}"
        found = find_spec(module) is not None
        check(f"{module} ({why})", found, "installed" if found else "none", cure)
    try:
        from attnpass.store import Store

        with Store(db) as store:
            check("database", True, f"{store.path} ({len(store.runs())} runs)", "", needed=True)
    except AttnpassError as error:
        check("database", False, str(error), "--db FILE or $ATTNPASS_DB", needed=True)
    return rows
