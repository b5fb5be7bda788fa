"""Accuracy of converted models after recovery: `python benchmarks/recovery.py CASE`.

Cases: `digits`, `minilm`, and with more steps and texts `minilm_more` or, at 512 tokens,
`minilm_512` and `minilm_512_skipat`.

Every form is put into all layers (skipat into half of them; in `minilm_512` with sigmoid in the
others). It is judged after calibration only, after the local stage only, the global stage only
(the default), and both, with the same number of steps. Scores are of held-out items, paired with
the original model's, with the bound at 95 %. A few items decide when a stage ends and which layers
are converted; they do not judge, and in `minilm_512_skipat` all others do. A row that is in the
result file is not taken again, so an interrupted run goes on; each row carries the digest of the
sources that made it. ``--plans DIR`` keeps the plans of the global stage and times them at the
end, interleaved in one process (not with `--rounds 0`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from encoder_speed import SKIPAT, fill, speed

import attnpass
from attnpass import environment, fingerprint
from attnpass.recover import DistilOptions, relative_error
from attnpass.task import Task, load_task
from attnpass.tuner.measure import answer, bound, pooled_scores, scores, split

ROOT = Path(__file__).parent.parent
TASKS = {
    "digits": "digits",
    "minilm": f"{ROOT}/examples/minilm.py:task",
    "minilm_more": f"{ROOT}/examples/minilm.py:more",
    "minilm_512": f"{ROOT}/examples/minilm.py:mrr_512",
    "minilm_512_skipat": f"{ROOT}/examples/minilm.py:mrr_512",
}
HALF: dict[str, tuple[str, dict[str, Any] | None, str | None]] = {
    "skipat": ("skipat", SKIPAT, None),
    "skipat r=0.5": ("skipat", SKIPAT | {"r": 0.5}, None),
    "skipat+softmax": ("skipat", SKIPAT, "softmax"),
    "skipat r=0.5+softmax": ("skipat", SKIPAT | {"r": 0.5}, "softmax"),
    "half-hydra": ("hydra", None, None),
    "skipat+sigmoid": ("skipat", SKIPAT, "sigmoid"),
}
"""Designs that convert half of the layers: the form there, its options, the form of the others.

Where the others are softmax by name, their projections learn too.
"""
FORMS = ("sigmoid", "relu", "hydra", *HALF)
STEPS = {
    "digits": {"sigmoid": 400, "relu": 600, "hydra": 1000, "skipat": 800},
    "minilm": {"sigmoid": 600, "relu": 600, "hydra": 1000, "skipat": 600, "half-hydra": 600},
    "minilm_more": {"hydra": 4000},
    "minilm_512": {"skipat+sigmoid": 6000},
    "minilm_512_skipat": {
        "skipat r=0.5": 4000,
        "skipat+softmax": 6000,
        "skipat r=0.5+softmax": 6000,
    },
}
"""Steps of distillation, of every design that a case has."""
AUTOCAST = {"minilm", "minilm_512"}
"""Tasks that are distilled in bfloat16 where the processor has instructions for it."""
LOCAL = {"local": 1.0, "global": 0.0, "both": 0.4}
WATCHED = {"minilm": (1, 16), "minilm_512": (1, 16)}
"""First batches that distillation is evaluated on, and items of each; else 4 and 100."""
EVERY = {"minilm_512_skipat"}
"""Cases judged by every batch that is not watched; else by those that the tuner holds out."""


def convert(
    task: Task, design: str, watched: Sequence[tuple[Any, ...]]
) -> tuple[attnpass.Plan, dict[str, Any]]:
    """The calibrated plan, and per site the error left.

    A form for half of the layers goes into those that together change the model's output least, on
    the items that are ``watched``; the change by each half is among the errors, as ``halves``.
    """
    form, options, other = HALF.get(design, (design, None, None))

    def plan(
        form: str, options: dict[str, Any] | None = None, sites: list[str] | None = None
    ) -> attnpass.Plan:
        return attnpass.Plan.create(
            task.model, *task.example, form=form, form_options=options, sites=sites
        )

    made = plan(form, options)
    errors = attnpass.calibrate(task.model, made, task.calibration)
    if design not in HALF:
        return made, errors
    capture = attnpass.Capture(task.model).trace(*task.example)
    changes = {}
    with torch.no_grad():
        want = torch.cat([capture(*inputs) for inputs in watched])
        for sites in itertools.combinations(errors, len(made.sites) // 2):
            together = attnpass.Plan({site: made.sites[site] for site in sites})
            together.values = {site: made.values[site] for site in sites}
            capture.use(together, strict=True)
            got = torch.cat([capture(*inputs) for inputs in watched])
            changes[" ".join(sites)] = float(relative_error(got, want))
    half = min(changes, key=changes.__getitem__).split()
    best = plan(form, options, half)
    if other not in (None, "softmax"):
        best = fill(best, plan(other))
    return best, attnpass.calibrate(task.model, best, task.calibration) | {"halves": changes}


OTHERS = {"recall": "recall@1", "reciprocal_rank": "MRR"}
"""Functions of a task's file that score retrieval, and their names in tables."""


class Judge:
    """Held-out scores of the original, and of plans beside it.

    Where all items are judged together, the other score of ``OTHERS`` is taken too. Distillation
    is evaluated on the inputs ``watched``, whose batches are not among those ``held_out``.
    """

    def __init__(self, task: Task, every: bool) -> None:
        self.scored = {task.metric: task}
        file = sys.modules[task.score.__module__] if task.pooled else None
        for name in OTHERS:
            score = getattr(file, name, task.score)
            if score is not task.score:
                self.scored[name] = replace(task, score=score)
        self.task = task
        self.capture = attnpass.Capture(task.model).trace(*task.example)
        batches, each = WATCHED.get(task.name, (4, 100))
        looked = [inputs for inputs, _ in task.validation[:batches]]
        self.watched = [tuple(x[:each] for x in inputs) for inputs in looked]
        halves = split([len(target) for _, target in task.validation])
        assert every or not halves.crossed
        self.held_out = range(batches, len(task.validation)) if every else halves.held_out
        self.base = self._scores()

    def _scores(self) -> dict[str, torch.Tensor]:
        batches = self.held_out
        if not self.task.pooled:
            return {self.task.metric: scores(self.task, self.capture, batches).main}
        outputs = [answer(self.task, self.capture, i) for i in batches]
        return {
            name: pooled_scores(task, outputs, batches).main for name, task in self.scored.items()
        }

    def __call__(self, plan: attnpass.Plan) -> dict[str, Any]:
        """Bounds by metric, the task's own without a name."""
        self.capture.use(plan, strict=True)
        found = self._scores()
        self.capture.use(None)
        bounds = {name: bound(self.base[name], found[name]).as_dict() for name in found}
        return {**bounds.pop(self.task.metric), **bounds}


def lessons(task: Task) -> Sequence[tuple[Any, ...]]:
    """Batches to learn from."""
    return task.recovery if len(task.recovery) else task.calibration


def items(task: Task) -> int:
    """Number of items to learn from."""
    return sum(len(inputs[0]) for inputs in lessons(task))


def recover(
    task: Task, judge: Judge, form: str, stage: str, seed: int, steps: int
) -> tuple[dict[str, Any], attnpass.Plan]:
    """Recover one plan: a row of the result, still without the held-out score, and the plan."""
    start, stages = time.monotonic(), []
    plan, errors = convert(task, form, judge.watched)
    autocast = task.name in AUTOCAST and environment.has_native_bfloat16("cpu")
    calibrated = time.monotonic() - start
    if stage != "calibrate":
        stages = attnpass.distil(
            task.model,
            plan,
            lessons(task),
            selection=judge.watched,
            steps=steps,
            seed=seed,
            outputs=task.outputs,
            local=LOCAL[stage],
            autocast=autocast,
            softmax=form in HALF and HALF[form][2] == "softmax",
        )
    seconds = time.monotonic() - start
    row = {
        "form": form,
        "sites": [n for n, e in plan.sites.items() if e.form != "softmax"],
        "errors": errors,
        "stage": stage,
        "seed": seed,
        "asked": steps,
        "learned_from": items(task),
        "steps": sum(s.steps for s in stages),
        "threads": torch.get_num_threads(),
        "rate": DistilOptions.rate,
        "autocast": autocast,
        "sources": fingerprint.recovery_digest(),
        "seconds_calibrate": round(calibrated, 1),
        "seconds": round(seconds, 1),
        "stages": [s.as_dict() for s in stages],
    }
    return row, plan


def table(result: dict[str, Any]) -> list[str]:
    """Drops in points of a hundred, mean over seeds and the worst one, as rows of Markdown.

    One per form, number of steps asked for, and of items to learn from.
    """
    stages = [s for s in ("calibrate", "local", "global", "both") if _rows(result, stage=s)]
    tail = {"bound": lambda rows: f"{max(r['upper'] for r in rows):.2%}"}
    for other in (name for name in OTHERS if name in result["original"]):
        tail[OTHERS[other]] = lambda rows, key=other: f"{max(r[key]['drop'] for r in rows):.2%}"
    tail["threads"] = lambda rows: ", ".join(str(n) for n in sorted({r["threads"] for r in rows}))
    tail["seconds"] = lambda rows: f"{max(r['seconds'] for r in rows):.0f}"
    timed = result.get("speed", {}).get("forms")
    if timed:
        tail["speed-up"] = lambda rows: _slowest(timed, rows)
    rows = ["| form | layers | steps | learned from | " + " | ".join([*stages, *tail]) + " |"]
    rows.append("| --- " * (len(stages) + len(tail) + 4) + "|")
    trained = [r for r in result["rows"] if r["stage"] != "calibrate"]
    groups = dict.fromkeys((r["form"], r["asked"], r["learned_from"]) for r in trained)
    for form, asked, learned in sorted(groups, key=lambda x: (FORMS.index(x[0]), *x[1:])):
        group = {"form": form, "asked": asked, "learned_from": learned}
        cells = []
        for stage in stages:
            drops = [r["drop"] for r in _rows(result, stage=stage, **group)]
            mean = sum(drops) / max(len(drops), 1)
            worst = f" (worst of {len(drops)}: {max(drops):.2%})" if len(drops) > 1 else ""
            cells.append(f"{mean:.2%}{worst}" if drops else "-")
        alone = _rows(result, stage="global", **group)
        cells += [write(alone) if alone else "-" for write in tail.values()]
        layers = len(_rows(result, form=form)[0]["sites"])
        rows.append(f"| {form} | {layers} | {asked} | {learned} | {' | '.join(cells)} |")
    return rows


def _name(row: dict[str, Any]) -> str:
    """The name of a row's plan, also of its file."""
    return "{form}, {asked} steps over {learned_from}, seed {seed}".format_map(row)


def _slowest(timed: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The least speed-up among the rows' plans that were timed, with its interval."""
    found = [timed[_name(r)] for r in rows if _name(r) in timed]
    if not found:
        return "-"
    least = min(found, key=lambda r: r["median"])
    return f"{least['median']:.2f}x [{least['low']:.2f}, {least['high']:.2f}]"


def _rows(result: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    return [r for r in result["rows"] if all(r[k] == v for k, v in wanted.items())]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=sorted(TASKS))
    parser.add_argument("--forms", help="default: all that are listed above for the case")
    parser.add_argument("--stages", default="global,calibrate,local,both")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="of all forms (0: as listed above)")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plans", type=Path, help="folder for the plans of the global stage")
    parser.add_argument("--rounds", type=int, default=20)
    return parser.parse_args()


def known_rows(case: str, out: Path, task: Task, judge: Judge) -> dict[str, Any]:
    """The result so far, with its header brought up to date; exits where it is of other things."""
    result = json.loads(out.read_text()) if out.exists() else {"rows": []}
    versions = environment.versions()
    if result["rows"] and result["versions"] != versions:
        sys.exit(f"expected rows of these versions in {out}, got others; delete it")
    held_out = len(judge.base[task.metric])
    if result["rows"] and result["held_out"] != held_out:
        sys.exit(
            f"expected rows judged by {held_out} items in {out}, got {result['held_out']};"
            " choose another file by --out"
        )
    return result | {
        "command": f"python benchmarks/recovery.py {case}",
        "date": time.strftime("%Y-%m-%d"),
        "device": environment.device(),
        "versions": versions,
        "metric": task.metric,
        "held_out": held_out,
        "original": {name: float(x.mean()) for name, x in judge.base.items()},
    }


def missing(
    given: argparse.Namespace, result: dict[str, Any], task: Task
) -> Iterator[tuple[str, str, int, int]]:
    """Form, stage, seed and steps of every row that was asked for and is not there yet."""
    forms = given.forms.split(",") if given.forms else list(STEPS[given.case])
    same = _rows(result, learned_from=items(task))
    taken = {(r["form"], r["stage"], r["seed"], r["asked"]) for r in same}
    for seed, stage, form in itertools.product(range(given.seeds), given.stages.split(","), forms):
        steps = given.steps or STEPS[given.case][form]
        # calibration has no seed
        if (form, stage, seed, steps) not in taken and not (stage == "calibrate" and seed):
            yield form, stage, seed, steps


def time_plans(given: argparse.Namespace, result: dict[str, Any], out: Path) -> None:
    """Time the plans that were kept, where that is asked for."""
    files = sorted(given.plans.glob("*.json")) if given.plans and given.rounds else []
    if not files:
        return
    plans = {file.stem: attnpass.Plan.load(file) for file in files}
    result["speed"] = speed(TASKS[given.case], plans, given.rounds)
    out.write_text(json.dumps(result, indent=1) + "\n")
    for name, ratio in result["speed"]["forms"].items():
        print(f"{name}: {ratio['median']:.3f}x [{ratio['low']:.3f}, {ratio['high']:.3f}]")


def main() -> None:
    given = arguments()
    out = given.out or ROOT / f"benchmarks/results/recovery_{given.case}_cpu.json"
    task = load_task(TASKS[given.case])
    judge = Judge(task, given.case in EVERY)
    result = known_rows(given.case, out, task, judge)
    print(f"original {result['original']} on {result['held_out']} items", flush=True)
    for form, stage, seed, steps in missing(given, result, task):
        row, plan = recover(task, judge, form, stage, seed, steps)
        if given.plans and stage == "global":
            given.plans.mkdir(parents=True, exist_ok=True)
            plan.save(given.plans / f"{_name(row)}.json")
        row |= judge(plan)
        result["rows"].append(row)
        out.write_text(json.dumps(result, indent=1) + "\n")
        print(
            f"{form:8} {stage:9} seed {seed}: {row['score']:.4f}, drop {row['drop']:.2%}"
            f" (at most {row['upper']:.2%}), {row['seconds']:.0f} s",
            flush=True,
        )
    time_plans(given, result, out)


if __name__ == "__main__":
    sys.exit(main())
