"""One attention, one form: an attention that runs otherwise than before, or not at all, is said.

A graph is compiled for each kind of call (lengths, a cache, training). An attention that is
converted in one of them and declined in another would change its meaning from call to call; and
where Dynamo gives up compiling a function, the original runs. Both are said once, by name, and
raised with ``strict``.

Not seen: functions that Dynamo runs without asking the backend at all (a compiled model under
``torch.func.vmap`` or ``jvp``, ``torch.compiler.disable``).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Hashable, Mapping

from attnpass.errors import PlanError
from attnpass.matching import MatchedGraph
from attnpass.plan import warn_or_raise
from attnpass.torch_internals import on_recompile_limit, traced_function

log = logging.getLogger("attnpass")

UNCHANGED = "softmax"

_lock = threading.Lock()

Forms = dict[tuple[str, str], str]
"""The form that runs at each attention, by its path and source line."""

_ran: dict[Hashable, dict[frozenset[Hashable], Forms]] = {}
"""By function and plan: for each layer, known by its parameters, the forms that ran first."""

_functions: dict[str, tuple[str, bool]] = {}
"""By function: the attentions that were converted in it, and whether falling back raises."""

_said: set[Hashable] = set()


def attentions(graph: MatchedGraph, forms: Mapping[str, str]) -> Forms:
    """What runs at each attention of a graph, by path and source line; one entry for each place.

    ``forms``: the graph's names of rewritten sites to their forms. A look-alike that is no
    attention is left out, and so is a place with several attentions that run differently.
    """
    found: dict[tuple[str, str], set[str]] = {}
    for region in graph.regions:
        site = region.site
        place = site.name.partition("#")[0], site.source
        found.setdefault(place, set()).add(forms.get(site.name, UNCHANGED))
    for decline in graph.declined:
        if not decline.code.startswith(("NOT_ATTENTION", "AXIS_NOT_TOKEN")):
            found.setdefault((decline.path, decline.source), set()).add(UNCHANGED)
    return {place: runs.pop() for place, runs in found.items() if len(runs) == 1}


def keep_steady(
    graph: MatchedGraph,
    forms: Mapping[str, str],
    chosen: Hashable,
    layer: frozenset[Hashable],
    *,
    strict: bool,
) -> None:
    """Remember what runs in a graph; say where it is another form than in an earlier graph.

    ``chosen``: the plan. ``layer``: the parameters that the graph reads. It is one that was met
    before if either reads all that the other does: a call with a cache may need fewer.

    Raises:
        PlanError: with ``strict``, such an attention.
    """
    traced = traced_function()
    if traced is None:
        return
    function, first = traced
    now = attentions(graph, forms)
    key = (function, chosen)
    changed: dict[tuple[str, str], tuple[str, str]] = {}
    with _lock:
        if first:  # Dynamo was reset
            _ran.pop(key, None)
        layers = _ran.setdefault(key, {})
        layers.setdefault(layer, {})
        for before in [ran for own, ran in layers.items() if own <= layer or layer <= own]:
            changed |= {p: (before[p], now[p]) for p in now if before.get(p, now[p]) != now[p]}
            before.update({p: form for p, form in now.items() if p not in before})
        if forms:
            names = ", ".join(dict.fromkeys(path for path, _ in now))
            _functions[function] = names, strict
    on_recompile_limit(_given_up)
    for (path, source), (old, new) in changed.items():
        why = next((str(d) for d in graph.declined if (d.path, d.source) == (path, source)), "")
        text = (
            f"expected {path} to run as {old} as in an earlier call, got {new} in this one"
            f"{': ' + why if why else ''}; give all calls the form, or leave the site out"
        )
        _say((key, layer, path, source), text, strict)


def _given_up(function: str) -> None:
    """Dynamo compiles a function no more: its original runs for calls of new kinds."""
    with _lock:
        names, strict = _functions.get(function, ("", False))
    if names:
        text = (
            f"{names} runs unchanged from now on in calls of new kinds: Dynamo reached its limit"
            f" of recompiles of {function}; mark sizes as dynamic (torch.compile(dynamic=True))"
        )
        _say(("limit", function), text, strict)


def _say(key: Hashable, text: str, strict: bool) -> None:
    with _lock:
        told = key in _said
        _said.add(key)
    if strict or not told:
        warn_or_raise(PlanError(text), strict)
