"""Tile sizes by measurement: one Optuna study per shape class, checked, interleaved, stored.

Every candidate's result is checked before its time counts; each is timed in pairs with the default
tile, which is always a candidate. What is stored is not slower than the default beyond the noise.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import optuna
from torch import Tensor

from attnpass import environment
from attnpass.kernels.select import ATEN_SCORES
from attnpass.kernels.tile import Tile, default_tile, space
from attnpass.store import Store
from attnpass.tuner.calls import ALLOWED, Call, Shape
from attnpass.tuner.latency import floor, interleave, ratio
from attnpass.tuner.progress import Voice

FINALISTS = 3


def study(
    shape: Shape, *, trials: int = 24, seed: int = 0, tick: Callable[[str], None] = lambda s: None
) -> dict[str, Any]:
    """Search the tile of a shape; returns the choice, its gain over the default and all trials.

    The default tile is the choice unless another is faster by more than can be told apart.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    call = Call(shape, seed)
    default, expected, known = call.default(), call.expected(), dict[Tile, dict[str, Any]]()
    choices = _choices(shape)
    problem = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=8, multivariate=True)
    )
    # one of the two is the default
    fused = default_tile("cpu", shape.head_dim, shape.direction)
    for tile in (fused, Tile("aten", block_m=fused.block_m, block_n=fused.block_n)):
        if tile.implementation in choices["implementation"]:
            problem.enqueue_trial({k: v for k, v in tile.as_dict().items() if k in choices})
    for _ in range(4 * trials):
        if len(known) >= trials:
            break
        trial = problem.ask()
        given = {k: trial.suggest_categorical(k, list(v)) for k, v in choices.items()}
        tile = _tile(given)
        if tile not in known:
            known[tile] = _try(call, tile, default, expected)
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
    found = {k: list(v) for k, v in space("cpu").items()}
    found["block_m"] = [m for m in found["block_m"] if m < 2 * shape.queries] or [16]
    found["block_n"] = [n for n in found["block_n"] if n < 2 * shape.keys] or [32]
    found["heads"] = [h for h in found["heads"] if h <= shape.batch * shape.heads]
    default = default_tile("cpu", shape.head_dim, shape.direction)
    found["block_m"] = sorted({*found["block_m"], default.block_m})
    found["block_n"] = sorted({*found["block_n"], default.block_n})
    # plain ATen rounds low precision logits, and holds all of them
    plain = shape.dtype == "float32" and shape.queries * shape.keys <= ATEN_SCORES
    if not plain or shape.direction == "backward":
        found["implementation"] = ["fused"]
    return found


def _tile(given: Mapping[str, Any]) -> Tile:
    """The tile of a choice; its blocks mean nothing to plain ATen."""
    return Tile("aten") if given["implementation"] == "aten" else Tile(**given)


def _try(call: Call, tile: Tile, default: Tile, expected: list[Tensor]) -> dict[str, Any]:
    """One candidate: is it right, and how fast beside the default."""
    try:
        error = call.error(tile, expected)
        if not error <= ALLOWED[call.shape.dtype]:
            return {"outcome": "inaccurate", "error": error}
        runs = [functools.partial(call.run, t) for t in (default, tile)]
        base, times = interleave(runs, rounds=5, warmup=1)
    except (MemoryError, RuntimeError) as problem:
        outcome = "oom" if "memory" in str(problem).lower() else "crashed"
        return {"outcome": outcome, "why": str(problem).splitlines()[0][:200]}
    return {"outcome": "ok", "error": error, "speedup": ratio(base, times).median}


def _final(call: Call, known: Mapping[Tile, dict[str, Any]], default: Tile) -> dict[str, Any]:
    """The best few beside the default, timed twice to know what cannot be told apart."""
    right = [t for t, row in known.items() if row["outcome"] == "ok" and t != default]
    best = sorted(right, key=lambda t: -float(known[t]["speedup"]))[:FINALISTS]
    tiles = [default, default, *best]
    runs: list[Callable[[], Any]] = [functools.partial(call.run, t) for t in tiles]
    once = min(interleave(runs[:1], rounds=3)[0])
    rounds = int(min(60, max(15, 1500 / max(once, 1e-3) / len(runs))))
    times = interleave(runs, rounds=rounds, warmup=1)
    same, ratios = floor(*times[:2]), [ratio(times[0], x) for x in times]
    faster = [i for i in range(2, len(tiles)) if ratios[i].low > 1 + same]
    i = max(faster, key=lambda i: ratios[i].median, default=1)
    ms = statistics.median(times[i])
    return {"tile": tiles[i].as_dict(), "ms": ms, "gain": ratios[i].as_dict(), "floor": same}


def tune(
    shapes: list[Shape],
    store: Store,
    voice: Voice,
    *,
    trials: int = 24,
    seed: int = 0,
    refresh: bool = False,
) -> list[dict[str, Any]]:
    """A study per distinct shape class, committed as it ends; stored ones are not repeated."""
    context, out = environment.kernel_context(), list[dict[str, Any]]()
    distinct = {str(shape.kind): shape for shape in reversed(shapes)}
    for kind, shape in reversed(distinct.items()):
        found, why = store.get("tiles", kind, {**context, "trials": trials})
        if found is None or refresh:
            voice.say(f"{kind}: {why or 'measured again'}")
            with voice.stage(kind, trials) as tick:
                found = study(shape, trials=trials, seed=seed, tick=tick)
            store.put("tiles", kind, {**context, "trials": trials}, found)
            store.put_tile(kind, context, Tile(**found["tile"]), found["gain"])
            why = "measured"
        out.append({**found, "source": why or "cached"})
    return out
