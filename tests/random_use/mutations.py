"""Mended roots, each undone in the source: the random use must find every one of them.

A root is found at the step, or graph, at which a session fails that is right with the root mended.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from provers import running

from random_use import graphs, run

LIMIT = 500
"""Steps or graphs within which a root must be found."""

SHORT = 16
"""Steps of a session here: most roots show at once in some models, and never in others."""

Edit = tuple[str, str, str]

NO_CHECK: Edit = (
    "graph.aliasing",
    "if found.is_mutable or not found.returns or node.target in side_effects():",
    "if found.is_mutable:",
)

ROOTS: dict[str, tuple[str, list[Edit]]] = {
    "a pattern of symbolic size is claimed without proof": (
        "graphs",
        [("matching.patterns", "if impossible(both(inside, wrong)):", "if True:")],
    ),
    "masks of different fills count as one": (
        "graphs",
        [
            (
                "matching.logits",
                "self.mixed_fills |= added or self.fill != mask.fill",
                "pass",
            )
        ],
    ),
    "a mask that is written later is read late": (
        "graphs",
        [
            (
                "matching.logits",
                'self.facts.refuse_written(step.condition, "logits 6", deep=True)',
                "pass",
            ),
        ],
    ),
    "a check without users is dropped": ("graphs", [NO_CHECK]),
    "operands that broadcast are not expanded": (
        "graphs",
        [
            (
                "rewrite.layouts",
                "_expanded(w, x, beside), x.permutation",
                "w.read(x.node), x.permutation",
            )
        ],
    ),
    "the first layer serves every call": (
        "steps",
        [
            (
                "compiled.dispatch",
                "all(args[i] is now() for i, now in self.layer.identity)",
                "True",
            )
        ],
    ),
    "names alone decide which site it is": (
        "steps",
        [
            (
                "compiled.layers",
                "_by_parameters(graph, inputs, plan) or _by_weights(graph, inputs, plan)",
                "{}",
            ),
            ("compiled.layers", "set(own) == plan.sites.keys()", "True"),
        ],
    ),
    "the plan's values of compile time are kept": (
        "steps",
        [
            (
                "compiled.added",
                "found = [value() for value in self.given]",
                "found = vars(self).setdefault('kept', [value() for value in self.given])",
            )
        ],
    ),
    "a sum of weight and delta outlives its release": (
        "steps",
        [
            (
                "compiled.dispatch",
                "if turn and known is not None and known[0] == turn and",
                "if known is not None and",
            )
        ],
    ),
    "a held sum reaches another model": (
        "steps",
        [("compiled.dispatch", " and known[1]() is weight", "")],
    ),
    "a check without users is dropped, through torch.compile": ("steps", [NO_CHECK]),
    "what is written into buffers is dropped": (
        "steps",
        [("graph.aliasing", "if found.is_mutable or not found.returns", "if not found.returns")],
    ),
    "a layer behind an unchanged one is passed over": (
        "steps",
        [
            (
                "compiled.graph",
                "if not unsaid and not later and not any(one.modules for one in layers):",
                "if not unsaid and not any(one.modules for one in layers[:1]):",
            ),
            ("compiled.graph", "if plan is None or not plan.bindings or not known:", "if True:"),
        ],
    ),
    "an entry is not compared with its site": (
        "steps",
        [("plan.plan", "            entry.check(site)\n", "")],
    ),
    "a parameter that is trained after the compile gets no gradient": (
        "steps",
        [("compiled.added", "if gradients and x.requires_grad and not trainable:", "if False:")],
    ),
    "L depends on whether a mask is proven": (
        "steps",
        [("forms.catalogue", "if site.mask else", "if site.mask & {'causal', 'padding'} else")],
    ),
    "a converted module takes what it was not made for": (
        "steps",
        [("capture.converted", "        self._guards.check(", "        (lambda *_: None)(")],
    ),
}
"""What is undone: how it is looked for, and the edits (module, old, new)."""


@contextlib.contextmanager
def undone(edits: list[Edit]) -> Iterator[None]:
    """Inside, all edits hold."""
    sources: dict[str, str] = {}
    for name, old, new in edits:
        source = sources.get(name) or inspect.getsource(
            importlib.import_module(f"attnpass.{name}")
        )
        assert source.count(old) == 1, f"{name} has no line {old!r}"
        sources[name] = source.replace(old, new)
    with contextlib.ExitStack() as stack:
        for name, source in sources.items():
            stack.enter_context(running(importlib.import_module(f"attnpass.{name}"), source))
        yield


def first(kind: str, seed: int, limit: int = LIMIT) -> int | None:
    """The number of the first step or graph that is wrong; None where all are right."""
    if kind == "graphs":
        for i in range(limit):
            try:
                verdict = graphs.check(seed * 1_000_000 + i)
            except Exception as error:
                verdict = f"wrong: {error}"
            if verdict.startswith("wrong"):
                return i + 1
        return None
    number = 0
    while True:
        at = seed * 1_000_000 + random.Random(number).randrange(10**6)
        for _, verdict in run.session(at, SHORT):
            number += 1
            if verdict and not verdict.startswith(run.UNCHECKED):
                return number
            if number == limit:
                return None


def found_at(job: tuple[str, int]) -> int | None:
    """Where a root is found when it is undone; printed, too."""
    name, seed = job
    kind, edits = ROOTS[name]
    run.quiet()
    with undone(edits):
        at = first(kind, seed)
    print(f"{name}: {at} {kind}", flush=True)
    return at


def table(seed: int) -> dict[str, Any]:
    """Every root with the step or graph at which it was found, None where it was not."""
    with ProcessPoolExecutor(2) as pool:
        found = dict(zip(ROOTS, pool.map(found_at, [(n, seed) for n in ROOTS]), strict=True))
    return {"limit": LIMIT, "of": {n: kind for n, (kind, _) in ROOTS.items()}, "found": found}
