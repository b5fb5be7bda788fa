"""How a tensor of a site becomes ``[B, H, rows, columns]`` and back.

A permutation, then the leading axes split or merged. Decided from axis provenance, applied by
``rewrite``.

Soundness: the layout of an operand names each of its axes once, and heads are heads. Conditions:

1. The head axis is one that a projection made; only where no axis is proven (graph inputs) does
   the convention ``[..., B, H, T, d]`` hold.
2. A transpose is taken into a layout only where gradients are recorded alike on both sides.
3. Key/value heads are taken as repeated only where an operator repeats each of them in place
   (``repeat_interleave``, or expand of an axis right behind the heads that is then merged).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from attnpass.graph import number, op_name, operand, operators, permuted, switched, value
from attnpass.matching.factors import Axis, kinds


@dataclass(frozen=True)
class Lead:
    """What the leading axes of a stage are.

    Attributes:
        count: number of leading axes.
        order: their order with the head axis last.
        heads: H.
        paired: the last of them is the head axis; else one axis holds batch and heads
            (``count`` 1) or there is no head axis (H = 1).
        split: the axis that holds batch and heads beside others, -1 for none; then ``order``
            leaves it where it is.
    """

    count: int
    order: tuple[int, ...]
    heads: int
    paired: bool
    split: int = -1


SHARED = -1


@dataclass(frozen=True)
class Operand:
    """A node with the permutation to (leading..., rows, columns) and its leading axes.

    ``SHARED`` in the permutation is an axis that the node does not have: one for all heads.
    """

    node: fx.Node
    permutation: tuple[int, ...]
    lead: Lead


def lead_of(axes: Sequence[Axis], sizes: Sequence[Any]) -> Lead:
    """Which leading axis holds the heads: the one made by a projection, else the last.

    An axis of heads is a product ending in feature factors; ``[B*H]`` is split at its feature
    part. Without any proof (graph inputs) the convention ``[..., B, H, T, d]`` holds.
    """
    count = len(axes)
    if count == 0:
        return Lead(0, (), 1, False)
    if count == 1:
        return Lead(1, (0,), _heads_within(axes[0]), False)
    made = [i for i, axis in enumerate(axes) if "feature" in kinds(axis)]
    at = made[-1] if made else count - 1
    within = _heads_within(axes[at])
    if made and within > 1 and kinds(axes[at]) - {"feature", "repeat"}:
        return Lead(count, tuple(range(count)), within, True, at)
    if not made and "token" in kinds(axes[at]) or not isinstance(sizes[at], int):
        return Lead(count, tuple(range(count)), 1, False)
    order = (*(i for i in range(count) if i != at), at)
    return Lead(count, order, int(sizes[at]), True)


def _heads_within(axis: Axis) -> int:
    """The heads that an axis of batch and heads ends in."""
    features = 1
    for factor in reversed(axis):
        if factor.kind not in ("feature", "repeat") or not isinstance(factor.size, int):
            break
        features *= factor.size
    return features


def absorb(
    node: fx.Node, permutation: tuple[int, ...], until: fx.Node
) -> tuple[fx.Node, tuple[int, ...]]:
    """Step over transposes that the permutation can take in, so that none is emitted twice.

    One made while gradients were switched otherwise than at ``until`` stays (condition 2).
    """
    while op_name(node) in operators.TRANSPOSES:
        if switched(node, until):
            break
        own = permuted(node)
        permutation = tuple(i if i == SHARED else own[i] for i in permutation)
        node = operand(node)
    return node, permutation


def ungrouped(x: Operand) -> tuple[Operand, int]:
    """The key/value heads before they were repeated for grouped queries, and the group size."""
    plain = x.lead.paired and x.lead.count == 2 and x.lead.split < 0
    if x.permutation != (0, 1, 2, 3) or not plain:
        return x, 1
    found = _repeated_in_place(x.node)
    if found is None:
        return x, 1
    base, group = found
    return Operand(base, x.permutation, x.lead), group


def _repeated_in_place(node: fx.Node) -> tuple[fx.Node, int] | None:
    """The heads that ``node [B, H, S, d]`` repeats, and how often (condition 3); else None."""
    if op_name(node) == "repeat_interleave":
        along_heads = node.args[2:3] == (1,) and isinstance(node.args[1], int)
        return (operand(node), number(node, 1)) if along_heads else None
    if op_name(node) not in operators.REGROUPS:
        return None
    inner = operand(node)
    while op_name(inner) in ("clone", "contiguous"):
        inner = operand(inner)
    if op_name(inner) != "expand" or value(inner).dim() != 5:
        return None
    lifted = operand(inner)
    if op_name(lifted) != "unsqueeze" or lifted.args[1] not in (2, -3):
        return None
    heads, own, group = value(node).shape[1], *value(inner).shape[1:3]
    if not all(isinstance(x, int) for x in (group, heads, own)) or heads != own * group:
        return None
    return operand(lifted), group
