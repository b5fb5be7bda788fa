"""Tile sizes by measurement: one Optuna study per shape class, checked, interleaved, stored.

Every candidate's result is checked before its time counts; each is timed in pairs with the default
tile, which is always a candidate. What is stored is not slower than the default beyond the noise.
On a GPU what cannot fit is pruned before it is compiled. Every outcome is stored as it comes, so
that a study goes on where it was interrupted, also by a tile that takes the GPU down.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import optuna
import torch
from torch import Tensor

from attnpass import environment
from attnpass.errors import MeasureError
from attnpass.kernels.activations import SOFTMAX
from attnpass.kernels.gpu import limits as gpu
from attnpass.kernels.select import ATEN_SCORES, space
from attnpass.kernels.tile import Tile
from attnpass.store import Store
from attnpass.tuner.measure import events, floor, interleave, ratio
from attnpass.tuner.progress import ProgressPrinter
from attnpass.tuner.tiles.attention_call import ALLOWED, Call, Shape

FINALISTS = 3

Outcomes = dict[Tile, dict[str, Any]]
"""The outcome of each tile that was tried, as JSON."""


def search_tile(
    shape: Shape,
    *,
    trials: int = 24,
    seed: int = 0,
    recall: Callable[[Tile], dict[str, Any] | None] = lambda tile: None,
    note: Callable[[Tile, dict[str, Any]], None] = lambda tile, row: None,
    tick: Callable[[str], None] = lambda s: None,
    left: Callable[[], float] = lambda: math.inf,
) -> dict[str, Any]:
    """Search the tile of a shape; returns the choice, its gain over the default and all trials.

    The default tile is the choice unless another is faster by more than can be told apart.
    ``recall`` gives an outcome that need not be measured again; ``note`` is told every new one.
    The search ends early when no seconds are ``left``.

    Raises:
        MeasureError: a tile took the GPU down; its outcome was noted first.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    call = Call(shape, seed)
    default, expected, known = call.default(), call.expected(), Outcomes()
    choices = _choices(shape)
    problem = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=8, multivariate=True)
    )
    # one of the two is the default
    fused = shape.default()
    for tile in (fused, Tile("aten", block_m=fused.block_m, block_n=fused.block_n)):
        if tile.implementation in choices["implementation"]:
            problem.enqueue_trial({k: v for k, v in tile.as_dict().items() if k in choices})
    for _ in range(4 * trials):
        if len(known) >= trials or (known and left() <= 0):
            break
        trial = problem.ask()
        given = {k: trial.suggest_categorical(k, list(v)) for k, v in choices.items()}
        tile = _tile(given)
        if tile not in known:
            stored = recall(tile)
            known[tile] = stored or _try(call, tile, default, expected)
            if stored is None:
                note(tile, known[tile])
            if known[tile]["outcome"] == "crashed" and _lost(shape):
                raise MeasureError(
                    f"expected the GPU to survive {tile}, got: {known[tile]['why']};"
                    " run the same command again, it goes on without this tile"
                )
            tick(f"{len(known)} tiles, {known[tile]['outcome']}")
        trial.set_constraint("right", 0.0 if known[tile]["outcome"] == "ok" else 1.0)
        problem.tell(trial, 1 / known[tile].get("speedup", 1e-3))
    return {
        "class": str(shape.kind),
        "shape": asdict(shape),
        "default": default.as_dict(),
        **_final(call, known, default),
        "trials": [{"tile": t.as_dict(), **row} for t, row in known.items()],
    }


def _choices(shape: Shape) -> dict[str, list[Any]]:
    """The space of a shape: blocks that are not far larger than it, ATen where it fits."""
    found = {k: list(v) for k, v in space(shape.device).items()}
    default = shape.default()
    for name, n in (("block_m", shape.queries), ("block_n", shape.keys)):
        fitting = {x for x in found[name] if x < 2 * n}
        found[name] = sorted({*fitting, getattr(default, name)})
    if "heads" in found:
        found["heads"] = [h for h in found["heads"] if h <= shape.batch * shape.heads]
    # plain ATen rounds low precision logits, and holds all of them
    plain = shape.dtype == "float32" and shape.queries * shape.keys <= ATEN_SCORES
    plain = plain and shape.direction == "forward"
    # torch's own softmax is as exact and fused, in both directions
    if not (plain or shape.h == SOFTMAX):
        found["implementation"] = ["fused"]
    return found


def _tile(given: Mapping[str, Any]) -> Tile:
    """The tile of a choice; its blocks mean nothing to plain ATen."""
    return Tile("aten") if given["implementation"] == "aten" else Tile(**given)


def _lost(shape: Shape) -> bool:
    """Whether the GPU answers no more: nothing else can be measured in this process."""
    if shape.device != "cuda":
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _pruned(shape: Shape, tile: Tile) -> str | None:
    """Why a tile need not be compiled."""
    if shape.device != "cuda" or tile.implementation == "aten":
        return None
    size = getattr(torch, shape.dtype).itemsize
    sizes = (shape.head_dim, shape.value_dim, size, shape.direction)
    return gpu.refusal(tile, *sizes, gpu.capability())


def _times(
    call: Call, runs: Sequence[Callable[[], Any]], rounds: int, warmup: int
) -> list[list[float]]:
    stopwatch = events() if call.shape.device == "cuda" else None
    return interleave(runs, rounds=rounds, warmup=warmup, stopwatch=stopwatch)


def _try(call: Call, tile: Tile, default: Tile, expected: list[Tensor]) -> dict[str, Any]:
    """One candidate: is it right, and how fast beside the default."""
    if why := _pruned(call.shape, tile):
        return {"outcome": "pruned", "why": why}
    try:
        error = call.error(tile, expected)
        if not error <= ALLOWED[call.shape.dtype]:
            return {"outcome": "inaccurate", "error": error}
        runs = [functools.partial(call.run, t) for t in (default, tile)]
        base, times = _times(call, runs, 5, 1)
    except Exception as problem:  # whatever a compiler or a driver may raise
        short = ("out of memory", "out of resource", "allocate memory")
        full = isinstance(problem, MemoryError) or any(x in str(problem).lower() for x in short)
        outcome = "oom" if full else "crashed"
        return {"outcome": outcome, "why": (str(problem) or repr(problem)).splitlines()[0][:200]}
    return {"outcome": "ok", "error": error, "speedup": ratio(base, times).median}


def _final(call: Call, known: Outcomes, default: Tile) -> dict[str, Any]:
    """The best few beside the default, timed twice to know what cannot be told apart."""
    right = [t for t, row in known.items() if row["outcome"] == "ok" and t != default]
    best = sorted(right, key=lambda t: -float(known[t]["speedup"]))[:FINALISTS]
    tiles = [default, default, *best]
    runs: list[Callable[[], Any]] = [functools.partial(call.run, t) for t in tiles]
    once = min(_times(call, runs[:1], 3, 3)[0])
    rounds = int(min(60, max(15, 1500 / max(once, 1e-3) / len(runs))))
    times = _times(call, runs, rounds, 1)
    same, ratios = floor(times[0], times[1]), [ratio(times[0], x) for x in times]
    faster = [i for i in range(2, len(tiles)) if ratios[i].low > 1 + same]
    i = max(faster, key=lambda i: ratios[i].median, default=1)
    ms = statistics.median(times[i])
    return {"tile": tiles[i].as_dict(), "ms": ms, "gain": ratios[i].as_dict(), "floor": same}


def tune(
    shapes: list[Shape],
    store: Store,
    progress: ProgressPrinter,
    *,
    trials: int = 24,
    seed: int = 0,
    refresh: bool = False,
    left: Callable[[], float] = lambda: math.inf,
) -> list[dict[str, Any]]:
    """A study per distinct shape class, committed as it ends; stored ones are not repeated.

    When no seconds are ``left``, the study that runs ends with the best tile so far and goes on
    another time; the classes after it are left out.
    """
    out = list[dict[str, Any]]()
    distinct = {str(shape.kind): shape for shape in reversed(shapes)}
    for kind, shape in reversed(distinct.items()):
        context = environment.kernel_context(shape.device)
        asked = {**context, "trials": trials, "seed": seed}
        found, why = store.get("tiles", kind, asked)
        if found is None and left() <= 0:
            progress.say(f"{kind}: no time left for it", style="yellow")
            continue
        if found is None or refresh:
            progress.say(f"{kind}: {why or 'measured again'}")
            given = (store, {**context, "shape": asdict(shape)})
            recall = (lambda tile: None) if refresh else functools.partial(_recall, *given)
            note = functools.partial(_note, *given)
            with progress.stage(kind, trials) as tick:
                ways = functools.partial(search_tile, recall=recall, note=note, tick=tick)
                found = ways(shape, trials=trials, seed=seed, left=left)
            if left() > 0:
                store.put("tiles", kind, asked, found)
            store.put_tile(kind, context, Tile(**found["tile"]), found["gain"])
            why = "measured"
        out.append({**found, "source": why or "cached"})
    return out


def _recall(store: Store, context: Mapping[str, Any], tile: Tile) -> dict[str, Any] | None:
    """The outcome of a tile in an interrupted study, None where it was not tried."""
    return store.get("tile", str(tile), context)[0]


def _note(store: Store, context: Mapping[str, Any], tile: Tile, row: Mapping[str, Any]) -> None:
    """Store the outcome of a tile."""
    store.put("tile", str(tile), context, row, outcome=row["outcome"])
