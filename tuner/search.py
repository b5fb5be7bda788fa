"""Optuna refines: ask and tell, one coordinator, the study in memory. The only file with optuna.

The study is rebuilt from cached evaluations whenever the same command runs again, so nothing of it
is stored. Infeasible and failed plans are told as constraints with values, never as failures: a
failed trial is invisible to the sampler, which would ask for it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import optuna


@dataclass(frozen=True)
class Outcome:
    """What is told of one plan.

    Attributes:
        cost: estimated milliseconds, to be minimised.
        excess: bound on the drop minus what is allowed; feasible at 0 or below.
    """

    cost: float
    excess: float


def search(
    space: Mapping[str, Sequence[str]],
    evaluate: Callable[[dict[str, str]], Outcome],
    seeds: Sequence[Mapping[str, str]],
    *,
    trials: int,
    seed: int = 0,
) -> int:
    """Evaluate the seeds, then what the sampler proposes; returns how many plans were tried.

    ``space`` maps each site to its choices; ``evaluate`` is called once per distinct plan, in at
    most ``trials`` calls.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=False, n_startup_trials=0)
    study = optuna.create_study(sampler=sampler)
    for plan in seeds:
        study.enqueue_trial(dict(plan), skip_if_exists=True)
    known: dict[tuple[str, ...], Outcome] = {}
    for _ in range(20 * trials):
        if len(known) >= trials:
            break
        trial = study.ask()
        plan = {
            site: trial.suggest_categorical(site, list(choices)) for site, choices in space.items()
        }
        key = tuple(plan.values())
        if key not in known:
            known[key] = evaluate(plan)
        trial.set_constraint("drop", known[key].excess)
        study.tell(trial, known[key].cost)
    return len(known)
