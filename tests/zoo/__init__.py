"""Real model code at tiny sizes with random weights: what the matcher must find in each.

A ``Spec`` builds one architecture; ``census`` runs it and records the verdicts. Every model comes
from a public package and is built offline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import nn

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]

BOTH, EAGER, SDPA = ("eager", "sdpa"), ("eager",), ("sdpa",)
PACKAGES = (
    "transformers",
    "timm",
    "torchvision",
    "diffusers",
    "open_clip",
    "torch",
    "x_transformers",
    "vit_pytorch",
    "monai",
    "handmade",
)

GROUPS = ("lucidrains", "vision_more", "science", "tabular", "speech")
"""Files of many small packages (``packages.txt``), run by name: ``make census-packages``."""

MORE = {"transformers": "transformers_more", "timm": "timm_more"}
"""Packages whose architectures fill a second file."""


@dataclass(frozen=True)
class Spec:
    """One architecture.

    Attributes:
        package: where its code comes from. name: of the architecture.
        build: from ``eager`` or ``sdpa`` to the model, its arguments and keyword arguments.
        impls: which of the two exist.
        mixed: attentions that the counter of products cannot follow (heads combined on the map,
            softmax spelled by hand): added to its count.
        why: decline code to the reason why that attention is no site.
        sample: part of the tests, not only of the full census.
    """

    package: str
    name: str
    build: Callable[[str], Built]
    impls: tuple[str, ...] = BOTH
    mixed: int = 0
    why: dict[str, str] = field(default_factory=dict)
    sample: bool = False


_specs: list[Spec] = []

_groups: dict[str, list[Spec]] = {}


def add(*args: Any, **kwargs: Any) -> None:
    """Register one ``Spec``."""
    _specs.append(Spec(*args, **kwargs))


def group(name: str) -> list[Spec]:
    """The specs of a group."""
    if name not in _groups:
        before = len(_specs)
        import_module(f"zoo.{name}_specs")
        _groups[name] = _specs[before:]
        del _specs[before:]
    return _groups[name]


def specs(package: str | None = None) -> Iterator[Spec]:
    """All specs, or those of one package or group; imports no model code."""
    if package in GROUPS:
        yield from group(package)
        return
    for name in PACKAGES if package is None else (package,):
        for file in filter(None, (name, MORE.get(name))):
            import_module(f"zoo.{file}_specs")
    yield from (s for s in _specs if package in (None, s.package))


def noise(*sizes: int) -> torch.Tensor:
    """Normal random numbers."""
    return torch.randn(*sizes)


def tokens(*sizes: int, upto: int = 64) -> torch.Tensor:
    """Token numbers above the special ones."""
    return torch.randint(3, upto, sizes)


def padding(batch: int = 2, length: int = 12, pads: int = 3) -> torch.Tensor:
    """1 for tokens, 0 for the last ``pads`` of the second item."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[1, length - pads :] = 0
    return mask
