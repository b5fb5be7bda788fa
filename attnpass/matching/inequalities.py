"""Boolean formulas over linear inequalities of whole numbers, and the proof that one never holds.

Soundness: ``impossible`` says True only of a formula that no whole numbers satisfy. Conditions:

1. A term that is not linear (a minimum, a product of sizes, a quotient) is one more unknown, free
   to take any value; it must be a whole number.
2. The negation of ``e >= 0`` is ``-e - 1 >= 0``, as e is a whole number.
3. Fourier-Motzkin elimination adds only consequences, and a formula is impossible only if each of
   its cases has a consequence ``c >= 0`` with c < 0.

Not covered: formulas that have rational but no whole solutions count as possible, and so does one
that grows beyond ``CASES`` or ``ROWS``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import sympy

CASES = 64
"""Largest number of cases that a formula may have."""

ROWS = 400
"""Largest number of inequalities in one elimination."""


class TooLarge(Exception):
    """A formula has too many cases, or a term in it is no whole number."""


Row = tuple[frozenset[tuple[Any, int]], int]
"""``sum of coefficient * unknown + constant >= 0``; the coefficients have no common divisor."""

Case = frozenset[Row]
"""Inequalities that all hold."""

Formula = frozenset[Case]
"""Cases of which at least one holds."""

FALSE: Formula = frozenset()
TRUE: Formula = frozenset({frozenset()})


def at_least_zero(e: Any) -> Formula:
    """``e >= 0`` for an expression or a number.

    Raises:
        TooLarge: a term of e is no whole number.
    """
    row = _row(e)
    if not row[0]:
        return TRUE if row[1] >= 0 else FALSE
    return frozenset({frozenset({row})})


def _row(e: Any) -> Row:
    """An expression as a row (condition 1)."""
    terms = sympy.expand(sympy.sympify(e)).as_coefficients_dict()
    if not all(c.is_Rational and (x == 1 or x.is_integer) for x, c in terms.items()):
        raise TooLarge
    whole = math.lcm(*(int(c.q) for c in terms.values()))
    return _reduced(
        {x: int(c * whole) for x, c in terms.items() if x != 1}, terms.get(1, 0) * whole
    )


def _reduced(terms: dict[Any, int], constant: Any) -> Row:
    terms = {x: c for x, c in terms.items() if c}
    divisor = math.gcd(*terms.values()) or 1
    # whole numbers: the constant can be rounded down
    return frozenset((x, c // divisor) for x, c in terms.items()), int(constant // divisor)


def both(a: Formula, b: Formula) -> Formula:
    """Both hold.

    Raises:
        TooLarge: more than ``CASES`` cases.
    """
    return _sized(x | y for x, y in itertools.product(a, b))


def either(a: Formula, b: Formula) -> Formula:
    """At least one holds.

    Raises:
        TooLarge: more than ``CASES`` cases.
    """
    return TRUE if frozenset() in a | b else _sized(a | b)


def opposite(a: Formula) -> Formula:
    """The formula does not hold (condition 2).

    Raises:
        TooLarge: more than ``CASES`` cases.
    """
    out = TRUE
    for case in a:
        rows = (frozenset({_reduced({x: -c for x, c in terms}, -k - 1)}) for terms, k in case)
        out = both(out, frozenset(rows))
    return out


def _sized(cases: Iterable[Case]) -> Formula:
    found = frozenset(c for c in cases if not _contradicts(c))
    if len(found) > CASES:
        raise TooLarge
    return found


def _contradicts(case: Case) -> bool:
    """Whether two inequalities of a case exclude each other, seen without elimination."""
    least = dict(sorted(case, key=lambda row: -row[1]))
    for terms, k in case:
        against = least.get(frozenset((x, -c) for x, c in terms))
        if against is not None and k + against < 0:
            return True
    return False


def impossible(formula: Formula) -> bool:
    """Whether the formula is proven to hold for no whole numbers (condition 3)."""
    return all(map(_infeasible, formula))


def _infeasible(case: Case) -> bool:
    """Fourier-Motzkin elimination: whether a contradiction follows."""
    rows = set(case)
    while rows:
        if any(not terms and k < 0 for terms, k in rows):
            return True
        rows = {row for row in rows if row[0]}
        unknowns = {x for terms, _ in rows for x, _ in terms}
        if not unknowns or len(rows) > ROWS:
            return False
        rows = _without(_cheapest(rows, unknowns), rows)
    return False


def _cheapest(rows: set[Row], unknowns: set[Any]) -> Any:
    """The unknown whose elimination makes the fewest rows."""

    def made(x: Any) -> tuple[int, str]:
        signs = [c > 0 for terms, _ in rows for y, c in terms if y == x]
        return sum(signs) * (len(signs) - sum(signs)), str(x)

    return min(unknowns, key=made)


def _without(x: Any, rows: set[Row]) -> set[Row]:
    """What follows from the rows for the unknowns other than ``x``."""
    split = [(dict(terms), k) for terms, k in rows]
    lower = [row for row in split if row[0].get(x, 0) > 0]
    upper = [row for row in split if row[0].get(x, 0) < 0]
    out = {_reduced(terms, k) for terms, k in split if x not in terms}
    for (a, k), (b, m) in itertools.product(lower, upper):
        p, n = a[x], -b[x]
        terms = {y: n * a.get(y, 0) + p * b.get(y, 0) for y in a.keys() | b.keys()}
        out.add(_reduced(terms, n * k + p * m))
    return out
