"""The integer program: from damage and savings per (site, choice) to a front of plans to try.

scipy is imported where it is needed: showing results takes none of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Assignment = tuple[tuple[str, str], ...]
"""(site, choice) per site, in the model's order."""


def front(
    damage: Mapping[str, Mapping[str, float]],
    saving: Mapping[str, Mapping[str, float]],
    points: int = 12,
) -> list[Assignment]:
    """Plans of least summed damage for evenly spaced savings, cheapest last, each once.

    Args:
        damage: per site and choice how far it moves the output (0 for softmax), additive.
        saving: per site and choice the milliseconds it saves (0 for softmax).
        points: how many savings between none and all.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    pairs = [(site, choice) for site, row in damage.items() for choice in row]
    if not pairs:
        return []
    cost = np.array([damage[s][c] for s, c in pairs])
    gain = np.array([saving[s][c] for s, c in pairs])
    one = np.array([[float(s == site) for s, _ in pairs] for site in damage])
    best = sum(max(row.values()) for row in saving.values())
    found: dict[Assignment, None] = {}
    for target in np.linspace(0.0, best, points + 1)[1:]:
        limits = [LinearConstraint(one, 1, 1), LinearConstraint(gain, target - 1e-9, np.inf)]
        solved = milp(
            cost, constraints=limits, bounds=Bounds(0, 1), integrality=np.ones(len(pairs))
        )
        if solved.x is not None:
            picked = (p for p, x in zip(pairs, solved.x, strict=True) if x > 0.5)
            found[tuple(picked)] = None
    return list(found)


def recipes(sites: Sequence[str], legal: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """The papers' own plans: hydra from the back, skipat in the middle, one form everywhere.

    ``legal`` lists the choices of each site; a choice starts with the name of its form.
    """

    def choice(site: str, form: str) -> str:
        return next((c for c in legal[site] if c.split()[0] == form), "softmax")

    n = len(sites)
    forms = dict.fromkeys(c.split()[0] for row in legal.values() for c in row)
    out = [{s: choice(s, form) for s in sites} for form in forms if form != "softmax"]
    for last in sorted({n // 6, n // 3, n // 2} - {0}):
        out.append(
            {s: choice(s, "hydra") if i >= n - last else "softmax" for i, s in enumerate(sites)}
        )
    # 2301.02240: zero-based blocks 3..8 of 12
    out.append(
        {
            s: choice(s, "skipat") if n // 4 <= i < n * 3 // 4 else "softmax"
            for i, s in enumerate(sites)
        }
    )
    return [plan for plan in out if set(plan.values()) != {"softmax"}]
