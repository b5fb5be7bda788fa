"""Names of sites and weights in the whole model, for graphs that know only a part of it.

Soundness (identity): two sites have one name only if they are the same attention. Conditions:

1. A site is known by its path, its source line and the places of its projections' parameters in
   the model, not by the parameter objects, which may be exchanged, nor by its number in its
   module, which shifts where another attention of the module is declined. Met again with all of
   these, in a graph for other sizes, it is the same. Anything else of the same path gets a number
   of its own (``path#2``).
2. A weight's path is the one by which it is called, where the model holds it under several.
3. An attention that occurs several times in one graph with the same parameters (a layer that is
   called twice) is as many sites.
4. An attention without parameters is known by what it computes: heads, sizes of features, scale,
   masks.

Not covered: attentions without parameters that compute the same at one source line; they are one
site, and a plan treats them alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch import nn

from attnpass.plan import Place, Places, places_in
from attnpass.site import AttentionSite


class SiteNames:
    """The names of one model. They are given in the order in which sites are met, and stay."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names: dict[tuple[Any, ...], str] = {}

    @property
    def places(self) -> dict[int, Place]:
        """The places of the model's parameters as they are now, by ``id``."""
        return places_in(self._model)

    def weight(self, parameter: Any, called: str, places: Places) -> str:
        """A parameter's path in the model (condition 2), ``""`` for what is none."""
        owner, _, name = called.rpartition(".")
        try:
            held = self._model.get_submodule(owner)._parameters.get(name)
        except AttributeError:
            held = None
        if held is not None and held is parameter:
            return called
        at = places.get(id(parameter))
        return "" if at is None else at.path

    def site(
        self,
        prefix: str,
        site: AttentionSite,
        parameters: Sequence[Any],
        places: Places,
        time: int,
    ) -> str:
        """The name of a site below ``prefix``, with its projections' parameters (condition 1).

        ``time``: how many times this attention stood in the same graph before.
        """
        path = site.name.partition("#")[0]
        base = ".".join(x for x in (prefix, "" if path == "root" else path) if x) or "root"
        own = [places[id(p)].path if id(p) in places else id(p) for p in parameters]
        key = (base, site.source, time, *(own or _computed(site)))
        if key not in self._names:
            taken = set(self._names.values())
            options = (base if i == 1 else f"{base}#{i}" for i in itertools.count(1))
            self._names[key] = next(x for x in options if x not in taken)
        return self._names[key]


def _computed(site: AttentionSite) -> tuple[Any, ...]:
    """What an attention without parameters computes, at every size (condition 4)."""
    heads = (site.heads, site.kv_heads, site.head_dim, site.value_dim)
    return (site.kind, *heads, site.scale, site.mask, site.bias, site.swapped, site.sink)
