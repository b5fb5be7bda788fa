"""What a task consists of, as digests by name: the part of a key that the user can change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from attnpass.fingerprint.closure import closure
from attnpass.fingerprint.walk import Walk
from attnpass.torch_internals import CustomOpDef, custom_op_functions, custom_ops


@dataclass(frozen=True)
class Contents:
    """What a task consists of.

    Attributes:
        digests: by name. Where all are equal a score is the same, but for what is read while it is
            computed: files, sockets, variables whose names are made at run time.
        opaque: types of objects that show no content; with one, the digests are those of this
            process alone.
    """

    digests: Mapping[str, object]
    opaque: tuple[str, ...]


def contents(
    model: nn.Module, score: Callable[..., object], data: object, starts: Iterable[str]
) -> Contents:
    """The contents of a model, a score, the data, and the user's sources behind them.

    ``starts`` are names of modules to follow beside those of the objects that are met.
    """
    walk = Walk()
    held = [x for m in model.modules() for x in vars(m).values() if isinstance(x, Tensor)]
    digests: dict[str, object] = {
        "weights": walk.digest([*model.parameters(), *model.buffers(), *held]),
        "model": walk.digest(model),
        "score": walk.digest(score),
        "data": walk.digest(data),
    }
    found = closure({*walk.modules, *starts})
    near = {k: v for k, v in custom_ops().items() if _home(v) in found.files}
    digests |= {
        "operators": walk.digest(near),
        "sources": found.sources,
        "libraries": found.libraries,
        "variables": found.variables,
    }
    return Contents(digests, tuple(sorted(walk.opaque)))


def _home(operator: CustomOpDef) -> str:
    """The module in which a custom operator is written."""
    return str(custom_op_functions(operator)[0].__module__)
