"""What the tuner concludes on a noisy machine: `python benchmarks/trust.py [OUT] [--real]`.

The truth is that of committed runs on quiet machines, and one more with forms that are a little
slower. Recorded times stand in for the worker: each call takes the true time, stretched by
processes that come and go and by jitter, as on a machine of two processors. ``median_false`` and
``median_lost`` count what the median of one measurement would have concluded. With ``--real`` the
built-in task is tuned beside real processes that burn time, and what was excluded is compared
with the truth.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attnpass import Plan, environment
from attnpass.plan import assign
from attnpass.store import Store
from attnpass.tuner.measure import Protocol, Times, ratio
from attnpass.tuner.progress import ProgressPrinter
from attnpass.tuner.search import Inspection, Settings, inspect_task
from attnpass.tuner.search.candidate import Candidate
from attnpass.tuner.search.ceiling import measure_ceiling
from attnpass.tuner.search.latencies import Latencies
from attnpass.tuner.search.pieces import PieceLibrary
from attnpass.tuner.search.session import Session
from attnpass.tuner.search.speed import measure_finalists, measure_savings

HERE = Path(__file__).parent
RECORDED = ("digits", "digits_recovered", "minilm_recovered")
"""Committed runs: the built-in task with AVX-512 and with AVX2, and a text encoder."""

MIXED = {"sigmoid": 0.97, "relu": 0.9, "hydra": 1.24, "skipat r=0": 1.05, "skipat r=0.5": 1.43}
"""Speed-ups where some forms are slower."""

LOADS = (0, 2, 6)
"""Numbers of competing processes."""

PROCESSORS = 2
RUNS = 20
WORTH = 1.1
"""A form at least this much quicker in truth must not be left out unmarked."""

CLOSE = 0.05
"""The plan that is chosen may be slower than the best one by this share."""


class Machine:
    """Two processors, and processes that run for seconds and rest for seconds."""

    def __init__(self, others: int, seed: int) -> None:
        self.pick, self.clock = random.Random(seed), 0.0
        self.until = [0.0] * others
        self.busy = [False] * others

    def call(self, ms: float, threads: int) -> float:
        """The time that a call of ``ms`` takes now; the clock goes on."""
        for i, end in enumerate(self.until):
            if self.clock >= end:
                self.busy[i] = not self.busy[i]
                self.until[i] = self.clock + self.pick.expovariate(1 / 2000)
        active = sum(self.busy)
        # threads wait for each other: the one that shares its processor decides
        free = PROCESSORS - threads
        share = 1 + max(0, active - free) / threads
        jitter = self.pick.gauss(0, 0.01 + 0.05 * active * threads / PROCESSORS)
        taken = ms * share * math.exp(jitter)
        self.clock += taken
        return taken


class Recorded:
    """A worker that answers with the truth as a machine shows it."""

    def __init__(self, base_ms: float, ratios: dict[str, float], ceiling: Sequence[float]) -> None:
        self.base_ms, self.ratios, self.limits = base_ms, ratios, ceiling
        self.machine = Machine(0, 0)

    def ceiling(self, protocol: Protocol) -> Times:
        return Times(self._times([1.0, 1.0, *self.limits], protocol), [])

    def measure(self, files: Sequence[str | None], protocol: Protocol) -> Times:
        hashes = ["" if f is None else Plan.load(Path(f)).hash for f in files]
        true = [1.0 if h == "" else self.ratios[h] for h in hashes]
        return Times(self._times(true, protocol), hashes)

    def _times(self, true: Sequence[float], protocol: Protocol) -> list[list[float]]:
        threads = protocol.threads or PROCESSORS
        out: list[list[float]] = [[] for _ in true]
        for i in range(protocol.rounds):
            for j in range(len(true)):
                at = (i + j) % len(true)
                out[at].append(self.machine.call(self.base_ms / true[at], threads))
        return out


@dataclass(frozen=True)
class Truth:
    """The baseline in ms, the speed-up of each form everywhere, and those of the ceilings."""

    base_ms: float
    forms: dict[str, float]
    ceilings: list[float]


def recorded(name: str) -> Truth:
    """The truth of a committed run."""
    stored = json.loads((HERE / "results" / f"{name}_cpu.json").read_text())
    facts, sites = stored["facts"], len(stored["front"][0]["forms"])
    ratios = {
        choice: 1 / (1 - min(0.9, saved * sites / facts["baseline_ms"]))
        for choice, saved in facts["saving_ms_per_site"].items()
    }
    limits = [facts[f"{x}_ratio"]["median"] for x in ("softmax", "bare", "skip")]
    return Truth(facts["baseline_ms"], ratios, limits)


def truths() -> dict[str, Truth]:
    """All truths, by name."""
    found = {name: recorded(name) for name in RECORDED}
    return {**found, "mixed": Truth(39.0, MIXED, [1.0, 1.6, 2.0])}


def simulated(
    inspection: Inspection, library: PieceLibrary, truth: Truth, others: int, seed: int
) -> dict[str, Any]:
    """The conclusions of one run beside ``others`` processes."""
    base_ms, known, limits = truth.base_ms, truth.forms, list(truth.ceilings)
    settings = replace(inspection.settings, forms=tuple(known))
    inspection = replace(inspection, settings=settings)
    plans = {
        c: library.plan({site: c for site, choices in inspection.legal.items() if c in choices})
        for c in known
    }
    by_hash = {plan.hash: known[choice] for choice, plan in plans.items()}
    by_hash[Plan(assign(inspection.sites, "softmax")[0]).hash] = limits[0]
    limits[1:] = [max(x, *known.values()) for x in limits[1:]]
    worker = Recorded(base_ms, by_hash, limits)
    worker.machine = Machine(others, seed)
    by_median = {}
    for choice, plan in plans.items():
        times = worker._times([1.0, by_hash[plan.hash]], Protocol(30))
        by_median[choice] = ratio(*times).median
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder, "a.db")) as store:
        session = Session(inspection.run, store, ProgressPrinter(quiet=True))
        latencies = Latencies(inspection, session, worker)  # type: ignore[arg-type]
        ceiling = measure_ceiling(latencies)
        savings = measure_savings(latencies, library, ceiling)
        chosen = [Candidate({}, plans[c], 1.0) for c in savings.useful]
        softer = ceiling.softer
        finalists = measure_finalists(latencies, chosen, lambda c: None, lossless=softer)
    noise = finalists.floor or 0.0
    faster = [c.plan.hash for c in finalists.plans if c.latency and c.latency.least > 1 + noise]
    best, base = max(known.values()), limits[0] if softer else 1.0
    picked = max(faster, key=lambda h: _median(finalists.plans, h), default=None)
    return {
        "reliable": ceiling.reliable,
        "floor": ceiling.floor,
        "excluded": {c: known[c] for c in savings.slower},
        "undecided": list(savings.undecided),
        "false": [by_hash[h] for h in faster if by_hash[h] <= base],
        "lost": [c for c in savings.slower if known[c] >= WORTH * base],
        "median_false": sum(by_median[c] > 1 >= known[c] for c in known),
        "median_lost": sum(by_median[c] <= 1 and known[c] >= WORTH for c in known),
        "regret": None if picked is None else 1 - by_hash[picked] / best,
    }


def _median(plans: Sequence[Candidate], key: str) -> float:
    return next(c.latency.ratio.median for c in plans if c.plan.hash == key and c.latency)


@contextlib.contextmanager
def burning(count: int) -> Iterator[None]:
    """Processes that burn a processor for a second or two, then rest as long."""
    code = (
        "import random, time\n"
        "while True:\n"
        "    end = time.time() + random.uniform(0.5, 2.5)\n"
        "    while time.time() < end: pass\n"
        "    time.sleep(random.uniform(0.5, 2.5))\n"
    )
    others = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()


def real(others: int) -> dict[str, Any]:
    """The built-in task tuned beside real processes."""
    known, base = recorded("digits").forms, recorded("digits").ceilings[0]
    with tempfile.TemporaryDirectory() as folder, burning(others):
        command = [
            *(sys.executable, "-m", "attnpass.tuner.cli", "tune", "digits", "--json"),
            *("--effort", "quick", "--trials", "8", "--max-drop", "0.02"),
            *("--db", f"{folder}/a.db", "--out", folder),
        ]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    facts = result["facts"]
    slower = [
        c
        for c, r in facts["form_ratios"].items()
        if c not in facts.get("undecided", []) and r["high"] < 1.01
    ]
    front = [row["latency"]["ratio"] for row in result["front"]]
    return {
        "others": others,
        "seconds": time.perf_counter() - began,
        "floor": facts["floor"],
        "reliable": facts.get("reliable", True),
        "conditions": facts.get("conditions"),
        "form_ratios": facts["form_ratios"],
        "undecided": facts.get("undecided", []),
        "lost": [c for c in slower if known.get(c, 0) >= WORTH * base],
        "front": front,
        "best": result["best"],
        "advice": result["advice"],
    }


def main() -> None:
    """Simulate, tune, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", default=str(HERE / "results" / "trust_cpu.json"))
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--runs", type=int, default=RUNS)
    given = parser.parse_args()
    known = truths()
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder, "a.db")) as store:
        inspection = inspect_task(Settings("digits"), store)
        session = Session(inspection.run, store, ProgressPrinter(quiet=True))
        library = PieceLibrary(inspection)
        library.calibrate(session)
    rows = []
    for (name, one), others in itertools.product(known.items(), LOADS):
        found = [simulated(inspection, library, one, others, i) for i in range(given.runs)]
        regrets = [x["regret"] for x in found if x["regret"] is not None]
        rows.append(
            {
                "truth": name,
                "others": others,
                "runs": len(found),
                "false": sum(len(x["false"]) for x in found),
                "lost": sum(len(x["lost"]) for x in found),
                "refused": len(found) - len(regrets),
                "worst_regret": max(regrets, default=0.0),
                "beyond": sum(x > CLOSE for x in regrets),
                "median_false": sum(x["median_false"] for x in found),
                "median_lost": sum(x["median_lost"] for x in found),
                "undecided": sum(len(x["undecided"]) for x in found),
                "unreliable": sum(not x["reliable"] for x in found),
            }
        )
        print(rows[-1], flush=True)
    value = {
        "command": "python benchmarks/trust.py" + (" --real" if given.real else ""),
        "date": time.strftime("%Y-%m-%d"),
        "device": environment.device(),
        "versions": environment.versions(),
        "truth": {name: vars(x) for name, x in known.items()},
        "simulated": rows,
        "real": [],
    }
    out = Path(given.out)
    out.write_text(json.dumps(value, indent=1) + "\n")
    for others in LOADS if given.real else ():
        value["real"].append(real(others))
        print(value["real"][-1], flush=True)
        out.write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    main()
