"""Random use of the product, and random graphs of symbolic size, against float64 references.

python -m random_use.run --steps 20000 --graphs 10000 --seed 1   in two processes; a summary
python -m random_use.run --only 1042                             one session, step by step
python -m random_use.run --graph 17                              one graph
python -m random_use.run --mutations                             what must be found, and when
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import logging
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["ATTNPASS_DB"] = os.path.join(tempfile.gettempdir(), "none-of-random-use.db")

import torch

from attnpass.errors import AttnpassError
from random_use import graphs, steps
from random_use.compared import Undecided
from random_use.session import Session

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"

LENGTH = 40
"""Steps of a session."""

UNCHECKED = "refused", "undecided", "torch alone"
"""What ends a step without a comparison: an error of ours with its reason, a model whose rounding
is as large as its numbers, the same failure without attnpass."""


def quiet() -> None:
    """One thread, no warnings, and an error instead of eager after many recompiles."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("attnpass").propagate = False
    logging.getLogger("torch").setLevel(logging.CRITICAL)
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.accumulated_recompile_limit = 1024
    torch._dynamo.config.fail_on_recompile_limit_hit = True


def refusal(error: BaseException | None) -> str:
    """The line of an error of ours behind ``error``; ``""`` where there is none."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, AttnpassError):
            return str(error)
        error = getattr(error, "inner_exception", None) or error.__cause__
    return ""


def judged(error: Exception, s: Session | None) -> str:
    """What an exception of a step means: one of `UNCHECKED` with the reason, or what is wrong."""
    if isinstance(error, Undecided):
        return f"undecided: {error}"
    if why := refusal(error):
        return f"refused: {why}"
    if s is not None and s.calls and s.fails_alone(error):
        return f"torch alone: {error}"
    return f"{type(error).__name__}: {error}"


def session(seed: int, length: int = LENGTH, loud: bool = False) -> Iterator[tuple[str, str]]:
    """Every step's name and ``""``, one of `UNCHECKED` and why, or what is wrong; that ends it."""
    quiet()
    s, row = None, 0
    for _ in range(length):
        name = "open"
        try:
            if s is None:
                s = steps.opened(seed)
            name, verdict = steps.step(s), ""
            row = 0
        except Exception as error:
            name = name if s is None else s.last
            verdict = judged(error, s)
            if loud and not verdict.startswith(UNCHECKED):
                traceback.print_exc()
        if loud and s is not None:
            print(name, verdict, s.tokens, s.batch, s.grad, s.dtype, s.regional, flush=True)
        yield name, verdict
        if verdict and not verdict.startswith(UNCHECKED):
            return
        row += bool(verdict)
        if row == 3 or s is None:
            return
        if verdict:
            s.inner = "eager" if verdict.startswith("torch alone") else s.inner
            s.back()


def many_steps(job: tuple[int, int, float]) -> dict[str, Any]:
    """Sessions from one seed on, until there were enough steps."""
    seed, count, end = job
    tally: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    wrong = []
    while tally["steps"] < count and time.time() < end:
        tally["sessions"] += 1
        for i, (name, verdict) in enumerate(session(seed)):
            tally["steps"] += 1
            tally[f"step {name}"] += 1
            if verdict.startswith(UNCHECKED):
                tally[verdict.partition(":")[0]] += 1
                reasons[f"{name}: {verdict[:100]}"] += 1
            elif verdict:
                wrong.append((seed, i, name, verdict[:300]))
            if time.time() > end:
                break
        seed += 1
    return {"tally": dict(tally), "reasons": dict(reasons), "wrong": wrong}


def many_graphs(job: tuple[int, int, float]) -> dict[str, Any]:
    """Graphs of consecutive seeds."""
    quiet()
    seed, count, end = job
    tally: collections.Counter[str] = collections.Counter()
    wrong = []
    for i in range(seed, seed + count):
        if time.time() > end:
            break
        try:
            verdict = graphs.check(i)
        except Exception as error:
            verdict = f"wrong: {type(error).__name__}: {error}"
        tally["graphs"] += 1
        tally[f"graph {verdict.partition(':')[0]}"] += 1
        if verdict.startswith("wrong"):
            wrong.append((i, 0, "graph", verdict[:300]))
    return {"tally": dict(tally), "wrong": wrong, "reasons": {}}


def everything(work: Any, part: int, count: int, seed: int, minutes: float) -> dict[str, Any]:
    """``count`` graphs or steps, by ``part``s in two processes, for ``minutes`` at most."""
    ends = time.time() + 60 * minutes
    tally: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    wrong: list[Any] = []
    first = seed * 1_000_000
    apart = part if work is many_graphs else 1000
    given = [
        (first + apart * i, min(part, count - part * i), ends) for i in range(-(-count // part))
    ]
    with ProcessPoolExecutor(2) as pool:
        for done in pool.map(work, given):
            tally.update(done["tally"])
            if done["tally"]:
                print(tally["graphs"], "graphs,", tally["steps"], "steps", flush=True)
            reasons.update(done["reasons"])
            for one in done["wrong"]:
                print(*one, flush=True)
            wrong += done["wrong"]
    print(json.dumps(dict(reasons.most_common(20)), indent=1))
    return {**dict(sorted(tally.items())), "wrong": len(wrong), "differences": wrong}


def main() -> int:
    """Run what the command line names; print and write the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--graphs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=120.0, help="stop after them")
    parser.add_argument("--only", type=int)
    parser.add_argument("--graph", type=int)
    parser.add_argument("--mutations", action="store_true")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    if given.only is not None:
        verdicts = [verdict for _, verdict in session(given.only, loud=True)]
        return int(not all(v == "" or v.startswith(UNCHECKED) for v in verdicts))
    if given.graph is not None:
        quiet()
        print(graphs.check(given.graph, loud=True))
        return 0
    failed = False
    if given.mutations:
        from random_use.mutations import table

        failed |= stored("random_use_mutations_cpu.json", lambda: table(given.seed), given.write)
    else:
        options = given.seed, given.minutes
        if given.graphs:
            made = functools.partial(everything, many_graphs, 100, given.graphs, *options)
            failed |= stored("random_graphs_cpu.json", made, given.write)
        if given.steps:
            made = functools.partial(everything, many_steps, 200, given.steps, *options)
            failed |= stored("random_use_cpu.json", made, given.write)
    return int(failed)


def stored(name: str, make: Callable[[], dict[str, Any]], write: bool) -> bool:
    """Run, print and perhaps write; whether anything was wrong, or a root not found."""
    began = time.perf_counter()
    found = make()
    result = {
        "command": " ".join(["python -m random_use.run", *sys.argv[1:]]),
        "device": "cpu",
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        **found,
        "seconds": round(time.perf_counter() - began),
    }
    print(json.dumps(result, indent=1))
    if write:
        (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n")
    return bool(found.get("wrong")) or None in found.get("found", {}).values()


if __name__ == "__main__":
    sys.exit(main())
