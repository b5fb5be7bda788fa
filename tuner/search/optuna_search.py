"""Optuna's study of a search: ask and tell, one coordinator, in memory.

The study is rebuilt from cached evaluations whenever the same command runs again, so nothing of it
is stored. Infeasible and failed plans are told as constraints with values, never as failures: a
failed trial is invisible to the sampler, which would ask for it again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

import optuna

from attnpass.tuner.search.learned import Effects

DRAWS = 5
"""How often a proposal is drawn again where it was scored already."""


@dataclass(frozen=True)
class Outcome:
    """The objective and the constraint of one plan, as the sampler is told.

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
    effects: Effects | None = None,
) -> int:
    """Evaluate the seeds, then what is proposed; returns how many plans were tried.

    ``space`` maps each site to its choices; ``evaluate`` is called once per distinct plan, in at
    most ``trials`` calls. Of four proposals three are those of ``effects``, which ``evaluate``
    tells what it finds, where they are given; the others are of Optuna's sampler.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=False, n_startup_trials=0)
    study = optuna.create_study(sampler=sampler)
    for plan in seeds:
        study.enqueue_trial(dict(plan), skip_if_exists=True)
    first = len({tuple(plan[site] for site in space) for plan in seeds})
    known: dict[tuple[str, ...], Outcome] = {}
    size = math.prod(len(choices) for choices in space.values())
    chance = random.Random(seed)
    nearby = False
    while len(known) < min(trials, size):
        if effects and not nearby and len(known) >= first and len(known) % 4:
            learned = _learned(effects, known)
            if learned is not None:
                study.enqueue_trial(learned)
        trial = study.ask()
        plan = {
            site: trial.suggest_categorical(site, list(choices)) for site, choices in space.items()
        }
        key = tuple(plan.values())
        nearby = key in known
        if nearby:
            # a sampler that has converged repeats itself: go to the nearest plan not yet tried
            study.enqueue_trial(_neighbour(plan, space, known, chance))
        else:
            known[key] = evaluate(plan)
        trial.set_constraint("drop", known[key].excess)
        study.tell(trial, known[key].cost)
    return len(known)


def _learned(effects: Effects, known: Container[tuple[str, ...]]) -> dict[str, str] | None:
    """A plan that is not known, proposed by the effects; None where none is."""
    proposed = (effects.propose() for _ in range(DRAWS if effects.plans else 0))
    return next((p for p in proposed if tuple(p.values()) not in known), None)


def _neighbour(
    plan: Mapping[str, str],
    space: Mapping[str, Sequence[str]],
    known: Container[tuple[str, ...]],
    chance: random.Random,
) -> dict[str, str]:
    """A plan that is not known, as few changes away as a random walk finds."""
    walker = dict(plan)
    while tuple(walker.values()) in known:
        site = chance.choice(list(space))
        walker[site] = chance.choice(list(space[site]))
    return walker
