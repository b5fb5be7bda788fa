"""What the scored plans teach about each (site, choice): better proposals, and a better choice.

The bound on a plan's drop, over that of the unchanged model, is modelled as a sum of effects, one
per converted (site, choice), under a power. Before any plan is scored, an effect is a power of the
damage that the choice does alone, times a constant; the powers and the constant are those under
which the scored plans are likeliest. Effects are normal, so what the plans teach is exact. It
serves twice. A proposal is the fastest plan under effects drawn from what is known (Thompson
sampling, 1707.02038). And of many plans scored on the same items some look better than they are:
what the others say about their parts corrects them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

SHARED = 0.5
"""Standard deviation of the constant, as a share of it, where plans are corrected. That of an
effect, before any plan is scored, is the effect itself."""

MISFIT = 0.1
"""Standard deviation of what effects do not explain, as a share of a plan's sum, at least of the
allowed one."""

TEMPER = 0.4
"""Share of the standard deviation with which effects are drawn: many plans are compared under
one draw, and the best of them profits from what was drawn too well."""

SHARES = (1.0, 0.7, 0.4)
"""Shares of the allowed sum that proposals may take, in turn."""

POWERS, STEEP = (0.5, 0.75, 1.0), (0.5, 1.0, 1.5)
"""Powers that are tried of the bounds, and of the damages."""

SCALES = np.geomspace(0.01, 100.0, 25)
"""Constants that are tried, times the one under which expected and seen sums are the same."""

LEAST, MOST = 1e-3, 1e3
"""Damages are taken as no less and no more than so many times their median."""

GRID = 1000
"""Steps of the allowed sum in which effects are counted."""

FLOOR, CEILING = 0.05, 1e3
"""Bounds are taken as no less than this share of what is allowed, and as no more than so many
times as much."""

Array = Any


class Effects:
    """What is known of the effect of each (site, choice).

    Args:
        damage: per site and choice how far it alone moves the output; 0 for softmax.
        saving: milliseconds per choice.
        allowed: the largest bound, over that of the unchanged model, within the limit; above 0.
    """

    def __init__(
        self,
        damage: Mapping[str, Mapping[str, float]],
        saving: Mapping[str, float],
        allowed: float,
        seed: int = 0,
    ) -> None:
        self.sites, self.allowed = list(damage), allowed
        self.pairs = [(s, c) for s, row in damage.items() for c in row]
        self.at = {pair: i for i, pair in enumerate(self.pairs)}
        self.changes = np.array([float(c != "softmax") for _, c in self.pairs])
        self.saved = np.array([saving.get(c, 0.0) for _, c in self.pairs])
        moved = np.array([damage[s][c] for s, c in self.pairs])
        known = moved[moved > 0]
        middle = float(np.median(known)) if len(known) else 1.0
        self.moved = self.changes * np.clip(moved / middle, LEAST, MOST)
        self.draw = np.random.default_rng(seed)
        self.plans: dict[tuple[str, ...], tuple[float, float]] = {}
        self._fit: tuple[float, Array] = (1.0, self.moved)
        self._fitted = self._turn = 0

    def tell(self, plan: Mapping[str, str], over: float, error: float) -> None:
        """Take what was measured of a plan.

        Args:
            over: the bound on its drop, over that of the unchanged model. error: its standard
                error.
        """
        self.plans[tuple(plan[s] for s in self.sites)] = (over, error)

    def propose(self) -> dict[str, str]:
        """The fastest plan that keeps the limit under effects drawn from what is known."""
        made, over, errors = self._seen()
        power, expected = self._shape(made, over, errors)
        sums, room = over**power, self.allowed**power
        error = self._error(over, errors, power)
        # drawn as if nothing was scored, then corrected by how wrong that is of the scored plans
        drawn = expected * (1 + TEMPER * self.draw.standard_normal(len(expected)))
        wrong = sums - made @ drawn - TEMPER * error * self.draw.standard_normal(len(sums))
        both = (made * expected**2) @ made.T + np.diag(error**2)
        drawn = drawn + expected**2 * (made.T @ np.linalg.solve(both, wrong))
        self._turn += 1
        share = SHARES[self._turn % len(SHARES)]
        return self._fastest(np.maximum(drawn, 0.0) / (share * room))

    def believed(self) -> dict[tuple[str, ...], tuple[float, float]]:
        """Of each scored plan, by its choices in the order of the sites, what all together tell.

        Its bound over that of the unchanged model, and the standard error that is left.
        """
        made, over, errors = self._seen()
        power, expected = self._shape(made, over, errors)
        sums, foreseen = over**power, made @ expected
        error = self._error(over, errors, power)
        own = (over + errors) ** power - sums  # that part is chance
        both = (made * expected**2) @ made.T + np.diag(error**2)
        both += SHARED**2 * np.outer(foreseen, foreseen)
        true = both - np.diag(own**2)
        gain = np.linalg.solve(both, true).T
        mean = np.maximum(foreseen + gain @ (sums - foreseen), 0.0)
        left = np.sqrt(np.maximum(np.diag(true - gain @ true), 0.0))
        found = mean ** (1 / power)
        rows = zip(found, (mean + left) ** (1 / power) - found, strict=True)
        return dict(zip(self.plans, ((float(x), float(e)) for x, e in rows), strict=True))

    def _seen(self) -> tuple[Array, Array, Array]:
        """Which (site, choice) each plan converts, its bound, never 0, and the error of that."""
        made = np.zeros((len(self.plans), len(self.pairs)))
        for row, plan in zip(made, self.plans, strict=True):
            row[[self.at[pair] for pair in zip(self.sites, plan, strict=True)]] = 1.0
        over, errors = np.array([*self.plans.values()]).reshape(-1, 2).T
        over = np.clip(over, FLOOR * self.allowed, CEILING * self.allowed)
        return made * self.changes, over, np.clip(errors, 0.0, CEILING * self.allowed)

    def _error(self, over: Array, errors: Array, power: float) -> Array:
        """The standard deviation of each plan's sum, as far as effects do not explain it."""
        sums = over**power
        own = (over + errors) ** power - sums
        return np.hypot(MISFIT * np.maximum(sums, self.allowed**power), own)

    def _shape(self, made: Array, over: Array, errors: Array) -> tuple[float, Array]:
        """The power, and the effects before any plan, under which the plans are likeliest."""
        if len(self.plans) >= self._fitted * 5 / 4:  # else they say about the same
            self._fitted = len(self.plans)
            tried = [
                self._likely(made, over, errors, *powers)
                for powers in itertools.product(POWERS, STEEP)
            ]
            self._fit = max(tried, key=lambda row: row[0])[1:]
        return self._fit

    def _likely(
        self, made: Array, over: Array, errors: Array, power: float, steep: float
    ) -> tuple[float, float, Array]:
        """How likely the plans are under powers and the best constant; the rest as ``_shape``."""
        sums, shape = over**power, self.moved**steep
        error = self._error(over, errors, power)
        foreseen, spread = made @ shape, (made * shape**2) @ made.T
        middle = float(sums.mean() / max(float(foreseen.mean()), 1e-12))
        found = []
        for scale in SCALES * middle:
            root = np.linalg.cholesky(scale**2 * spread + np.diag(error**2))
            left = np.linalg.solve(root, sums - scale * foreseen)
            found.append((-0.5 * float(left @ left) - float(np.log(np.diag(root)).sum()), scale))
        likely, scale = max(found)
        stretched = len(sums) * np.log(power) + (power - 1) * float(np.log(over).sum())
        return likely + stretched, power, scale * shape

    def _fastest(self, shares: Array) -> dict[str, str]:
        """The plan that saves most while the shares of its choices are 1 or less in all.

        By dynamic programming over the sites, shares rounded up to a grid.
        """
        steps = np.minimum(np.ceil(shares * GRID - 1e-9), GRID + 1).astype(int)
        best, taken = np.zeros(GRID + 1), list[Array]()
        for site in self.sites:
            own = np.array([i for i, (s, _) in enumerate(self.pairs) if s == site])
            rows = np.full((len(own), GRID + 1), -np.inf)
            for row, i in zip(rows, own, strict=True):
                if steps[i] <= GRID:
                    row[steps[i] :] = best[: GRID + 1 - steps[i]] + self.saved[i]
            taken.append(own[rows.argmax(0)])
            best = rows.max(0)
        left, plan = GRID, dict[str, str]()
        for site, choice in zip(reversed(self.sites), reversed(taken), strict=True):
            plan[site] = self.pairs[choice[left]][1]
            left -= steps[choice[left]]
        return {site: plan[site] for site in self.sites}
