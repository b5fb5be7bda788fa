"""How a tensor of a site becomes ``[B, H, rows, columns]`` and back.

A permutation, then the leading axes split or merged. Decided from axis provenance, applied by
``rewrite``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from attnpass.graph import op_name, permuted, switched
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

    One made while gradients were switched otherwise than at ``until`` stays.
    """
    while op_name(node) in ("transpose", "permute", "swapaxes", "mT"):
        if switched(node, until):
            break
        own = permuted(node)
        permutation = tuple(i if i == SHARED else own[i] for i in permutation)
        node = node.args[0]  # type: ignore[assignment]
    return node, permutation


def ungrouped(operand: Operand) -> tuple[Operand, int]:
    """The key/value heads before they were repeated for grouped queries, and the group size."""
    node, p = operand.node, operand.permutation
    lead = operand.lead
    if p != (0, 1, 2, 3) or not lead.paired or lead.count != 2 or lead.split >= 0:
        return operand, 1
    if (
        op_name(node) == "repeat_interleave"
        and node.args[2:3] == (1,)
        and isinstance(node.args[1], int)
    ):
        base, group = node.args[0], node.args[1]
        return Operand(base, p, operand.lead), group  # type: ignore[arg-type]
    if op_name(node) not in ("reshape", "view", "flatten", "_unsafe_view"):
        return operand, 1
    inner = node.args[0]
    while op_name(inner) in ("clone", "contiguous"):  # type: ignore[arg-type]
        inner = inner.args[0]  # type: ignore[union-attr]
    if op_name(inner) != "expand" or inner.meta["val"].dim() != 5:  # type: ignore[arg-type, union-attr]
        return operand, 1
    lifted = inner.args[0]  # type: ignore[union-attr]
    if op_name(lifted) != "unsqueeze" or lifted.args[1] not in (2, -3):  # type: ignore
        return operand, 1
    group = inner.meta["val"].shape[2]  # type: ignore[union-attr]
    heads, own = node.meta["val"].shape[1], inner.meta["val"].shape[1]  # type: ignore[union-attr]
    if not all(isinstance(x, int) for x in (group, heads, own)) or heads != own * group:
        return operand, 1
    return Operand(lifted.args[0], p, operand.lead), group  # type: ignore[union-attr, arg-type]
