"""What the tuner concludes on a noisy machine: `python benchmarks/trust.py [OUT] [--real]`.

The truth is that of a committed run on a quiet machine (``results/digits_cpu.json``). Recorded
times stand in for the worker: each call takes the true time, stretched by processes that come and
go and by jitter, as on a machine of two processors. With ``--real`` the built-in task is tuned
beside real processes that burn time, and what was excluded is compared with the same truth.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attnpass import Plan, environment
from attnpass.store import Store
from attnpass.tuner.measure import Protocol, Times
from attnpass.tuner.progress import ProgressPrinter
from attnpass.tuner.search import Inspection, Settings, inspect_task
from attnpass.tuner.search.candidate import Candidate
from attnpass.tuner.search.latencies import Latencies
from attnpass.tuner.search.pieces import PieceLibrary
from attnpass.tuner.search.session import Session
from attnpass.tuner.search.speed import measure_ceiling, measure_finalists, measure_savings

HERE = Path(__file__).parent
TRUTH = HERE / "results" / "digits_cpu.json"
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


def truth() -> tuple[float, dict[str, float], list[float]]:
    """The baseline, the speed-up of each form everywhere, and those of the ceilings."""
    stored = json.loads(TRUTH.read_text())
    facts, sites = stored["facts"], len(stored["front"][0]["forms"])
    ratios = {
        choice: 1 / (1 - min(0.9, saved * sites / facts["baseline_ms"]))
        for choice, saved in facts["saving_ms_per_site"].items()
    }
    limits = [facts[f"{x}_ratio"]["median"] for x in ("softmax", "bare", "skip")]
    return facts["baseline_ms"], ratios, limits


def simulated(inspection: Inspection, library: PieceLibrary, others: int, seed: int) -> dict:
    """The conclusions of one run beside ``others`` processes."""
    base_ms, known, limits = truth()
    plans = {
        c: library.plan({site: c for site, choices in inspection.legal.items() if c in choices})
        for c in known
    }
    by_hash = {plan.hash: known[choice] for choice, plan in plans.items()}
    limits[1:] = [max(x, *known.values()) for x in limits[1:]]
    worker = Recorded(base_ms, by_hash, limits)
    worker.machine = Machine(others, seed)
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder, "a.db")) as store:
        session = Session(inspection.run, store, ProgressPrinter(quiet=True))
        latencies = Latencies(inspection, session, worker)  # type: ignore[arg-type]
        ceiling = measure_ceiling(latencies)
        savings = measure_savings(latencies, library, ceiling)
        chosen = [Candidate({}, plans[c], 1.0) for c in savings.useful]
        finalists = measure_finalists(latencies, chosen, lambda c: None)
    noise = finalists.floor or 0.0
    faster = [c.plan.hash for c in finalists.plans if c.latency and c.latency.least > 1 + noise]
    best = max(known.values())
    picked = max(faster, key=lambda h: _median(finalists.plans, h), default=None)
    return {
        "reliable": ceiling.reliable,
        "floor": ceiling.floor,
        "excluded": {c: known[c] for c in savings.slower},
        "undecided": list(savings.undecided),
        "false": [by_hash[h] for h in faster if by_hash[h] <= 1],
        "lost": [c for c in savings.slower if known[c] >= WORTH],
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
    _, known, _ = truth()
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
        "lost": [c for c in slower if known.get(c, 0) >= WORTH],
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
    base_ms, known, limits = truth()
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder, "a.db")) as store:
        inspection = inspect_task(Settings("digits", forms=tuple(known)), store)
        session = Session(inspection.run, store, ProgressPrinter(quiet=True))
        library = PieceLibrary(inspection)
        library.calibrate(session)
    rows = []
    for others in LOADS:
        found = [simulated(inspection, library, others, seed) for seed in range(given.runs)]
        regrets = [x["regret"] for x in found if x["regret"] is not None]
        rows.append(
            {
                "others": others,
                "runs": len(found),
                "false": sum(len(x["false"]) for x in found),
                "lost": sum(len(x["lost"]) for x in found),
                "refused": len(found) - len(regrets),
                "worst_regret": max(regrets, default=0.0),
                "beyond": sum(x > CLOSE for x in regrets),
                "unreliable": sum(not x["reliable"] for x in found),
            }
        )
        print(rows[-1], flush=True)
    value = {
        "command": "python benchmarks/trust.py --real",
        "date": time.strftime("%Y-%m-%d"),
        "device": environment.device(),
        "versions": environment.versions(),
        "truth": {"base_ms": base_ms, "forms": known, "ceilings": limits},
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
