"""Names of sites and weights in the whole model, for graphs that know only a part of it.

Soundness (identity): two sites have one name only if they are the same attention. Conditions:

1. A site is known by its path, its ordinal in its module, its source line and the identity of its
   projections' parameters; met again with all of these, in a graph for other sizes, it is the
   same. Anything else of the same path gets a number of its own (``path#2``).
2. A weight's path is the one by which it is called, where the model holds it under several.

Not covered: attentions without parameters at one source line, and ordinals that shift because
another attention of the module is declined this time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch import nn

from attnpass.site import AttentionSite


class SiteNames:
    """The names of one model. They are given in the order in which sites are met, and stay."""

    def __init__(self, model: nn.Module) -> None:
        self.paths = {id(p): n for n, p in reversed(list(model.named_parameters()))}
        self._aliases = {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)}
        self._names: dict[tuple[Any, ...], str] = {}

    def weight(self, parameter: Any, called: str) -> str:
        """A parameter's path in the model (condition 2), ``""`` for what is none."""
        known = self._aliases.get(called) == id(parameter)
        return called if known else self.paths.get(id(parameter), "")

    def site(self, prefix: str, site: AttentionSite, parameters: Sequence[Any]) -> str:
        """The name of a site below ``prefix``, with its projections' parameters (condition 1)."""
        path, _, number = site.name.partition("#")
        base = ".".join(x for x in (prefix, "" if path == "root" else path) if x) or "root"
        key = (base, number, site.source, *(id(p) for p in parameters))
        if key not in self._names:
            taken = set(self._names.values())
            options = (base if i == 1 else f"{base}#{i}" for i in itertools.count(1))
            self._names[key] = next(x for x in options if x not in taken)
        return self._names[key]
