"""Every spelling of a two-operand product as one record: one letter per axis of both operands.

``matmul``, ``mm``, ``bmm``, ``baddbmm`` and two-operand ``einsum`` all become
``(a, "bhtd"), (b, "bhsd") -> "bhts"`` with whatever letters.

Soundness: the letters say which axes are multiplied, summed and kept. Conditions:

1. Both operands are tensors of the graph with at least two axes.
2. ``baddbmm`` adds its first operand as it is, or not at all, and scales by a number.
3. An einsum has two operands, and no letter twice in one of them.

Not covered: a letter whose size is 1 in one operand, which einsum repeats; ``reader`` compares
the lengths of keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import ascii_letters, digits

from torch import fx

from attnpass.graph import broadcast, op_name, value


@dataclass(frozen=True)
class Contraction:
    """A product of two tensors summed over shared letters.

    Attributes:
        node: the graph node.
        a, b: its operands, with one letter per axis in ``a_letters``, ``b_letters``.
        out: letters of the result.
        factor: what the product is multiplied with.
        added: a tensor added to the product (``baddbmm``), already scaled by beta.
    """

    node: fx.Node
    a: fx.Node
    b: fx.Node
    a_letters: str
    b_letters: str
    out: str
    factor: float = 1.0
    added: fx.Node | None = None

    @property
    def summed(self) -> str:
        """The letters that are summed over."""
        return "".join(c for c in self.a_letters if c in self.b_letters and c not in self.out)

    @property
    def batch(self) -> str:
        """The letters that both operands and the result have, in the result's order."""
        return "".join(c for c in self.out if c in self.a_letters and c in self.b_letters)

    def own(self, side: str) -> str:
        """The letters of ``side`` (``a`` or ``b``) that only it brings to the result."""
        mine, other = self.a_letters, self.b_letters
        mine, other = (mine, other) if side == "a" else (other, mine)
        return "".join(c for c in self.out if c in mine and c not in other)


def contraction(node: fx.Node) -> Contraction | None:
    """The record of ``node``, None where it is not a two-operand product."""
    name = op_name(node)
    if name in ("matmul", "mm", "bmm"):
        return _matmul(node, node.args[0], node.args[1])
    if name == "baddbmm":
        alpha, beta = node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1)
        if beta not in (0, 1) or not isinstance(alpha, (int, float)):
            return None
        added = node.args[0] if beta else None
        return _matmul(node, node.args[1], node.args[2], float(alpha), added)
    if name == "einsum":
        return _einsum(node)
    return None


def any_product(node: fx.Node) -> Contraction | None:
    """The letters of every product; those that ``contraction`` does not read in full, too.

    What such a product adds or scales by is not told: products with vectors, ``baddbmm`` with any
    numbers, distances, and a sum of a broadcast multiplication.
    """
    found = contraction(node)
    spread = broadcast(node) if found is None else None
    if spread is not None:
        return _spread(node, *spread)
    name, args = op_name(node), node.args
    if found is None and name == "baddbmm":
        return _matmul(node, args[1], args[2])
    if found is None and name in ("cdist", "_cdist_forward"):
        product = _matmul(node, args[0], args[1])
        # both operands have their features last
        return product and replace(product, b_letters=product.b_letters[:-2] + "jk")
    if found is None and name in ("matmul", "mv"):
        return _with_vector(node, args[0], args[1])
    return found


def pairs(node: fx.Node) -> Contraction | None:
    """The letters of a sum or difference of every row of one tensor and every row of another."""
    given = [x for x in node.args[:2] if isinstance(x, fx.Node)]
    if op_name(node) not in ("add", "sub") or len(given) < 2:
        return None
    found = _spread(node, given[0], given[1], [])
    return found if found.own("a") and found.own("b") else None


def _spread(node: fx.Node, a: fx.Node, b: fx.Node, dims: list[int]) -> Contraction:
    """A sum over ``dims`` of two tensors' product; an axis of size 1 has a name of its own."""
    rank = max(value(a).dim(), value(b).dim())
    ones = ascii_letters[26 : 26 + rank], ascii_letters[52 - rank :]
    a_letters, b_letters = (
        "".join(
            alone[i] if isinstance(n, int) and n == 1 else ascii_letters[i]
            for i, n in enumerate(value(x).shape, start=rank - value(x).dim())
        )
        for x, alone in ((a, ones[0]), (b, ones[1]))
    )
    kept = value(node).dim() == rank
    out = "".join(
        digits[i] if i in dims else ascii_letters[i] for i in range(rank) if kept or i not in dims
    )
    return Contraction(node, a, b, a_letters, b_letters, out)


def _with_vector(node: fx.Node, a: object, b: object) -> Contraction | None:
    """A matrix times a vector, or a vector times a matrix."""
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node):
        return None
    ranks = value(a).dim(), value(b).dim()
    lead = "ABCDEFG"[: max(ranks) - 2]
    if ranks[0] == 1 < ranks[1]:
        return Contraction(node, a, b, "k", lead + "kj", lead + "j")
    if ranks[1] == 1 < ranks[0]:
        return Contraction(node, a, b, lead + "ik", "k", lead + "i")
    return None


def _matmul(
    node: fx.Node, a: object, b: object, factor: float = 1.0, added: object = None
) -> Contraction | None:
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node):
        return None
    ranks = value(a).dim(), value(b).dim()
    if min(ranks) < 2:
        return None
    lead = "ABCDEFG"[: max(ranks) - 2]
    a_lead, b_lead = (lead[len(lead) - (r - 2) :] for r in ranks)
    return Contraction(
        node,
        a,
        b,
        a_lead + "ik",
        b_lead + "kj",
        lead + "ij",
        factor,
        added if isinstance(added, fx.Node) else None,
    )


def _einsum(node: fx.Node) -> Contraction | None:
    operands = node.args[1]
    if not isinstance(operands, (list, tuple)) or len(operands) != 2:
        return None
    a, b = operands
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node):
        return None
    spelled = letters_of(str(node.args[0]), [value(a).dim(), value(b).dim()])
    if spelled is None:
        return None
    (a_letters, b_letters), out = spelled
    if any(len(set(x)) != len(x) for x in (a_letters, b_letters, out)):
        return None
    return Contraction(node, a, b, a_letters, b_letters, out)


def letters_of(equation: str, ranks: Sequence[int]) -> tuple[list[str], str] | None:
    """The letters of an einsum's operands, which have ``ranks`` axes, and those of its result.

    An ellipsis and a result that is not written are spelled out; None where they do not fit.
    """
    left, arrow, out = equation.replace(" ", "").partition("->")
    inputs = left.split(",")
    if len(inputs) != len(ranks):
        return None
    free = [c for c in ascii_letters if c not in equation]
    count = max(rank - len(x.replace("...", "")) for x, rank in zip(inputs, ranks, strict=True))
    if count > len(free):
        return None
    lead, spelled = "".join(free[: max(0, count)]), []
    for x, rank in zip(inputs, ranks, strict=True):
        own = rank - len(x.replace("...", ""))
        if own < 0 or (own > 0 and "..." not in x):
            return None
        spelled.append(x.replace("...", lead[len(lead) - own :]))
    if not arrow:
        once = sorted(c for c in set(left) - set(".,") if left.count(c) == 1)
        out = ("..." if "..." in left else "") + "".join(once)
    return spelled, out.replace("...", lead)
