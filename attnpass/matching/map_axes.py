"""The rows and columns of a map, followed from ``q k^T`` through softmax to the values.

A map is the tensor of logits, and later of weights: one number per query and key. Its rows are
queries, its columns keys.

Soundness: rows and columns are followed by position through every operator of a chain and by
provenance through views, never by size; so ``[B, H, T, T]`` with T = H is read as any other.
Conditions:

1. The logits are a product of one axis of rows and one of columns, summed over one axis; one more
   axis that only the queries have may be their heads (multi-query attention).
2. Softmax runs over the keys.
3. Operators that combine heads leave rows and columns alone.
4. A view of the map finds rows and columns as its last two axes.
5. A view of the map leaves its last two axes as they are, or a later view joins them again.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import fx

from attnpass.graph import number, op_name, operand, operators, permuted, value
from attnpass.matching.chain import Chain
from attnpass.matching.factors import kinds
from attnpass.matching.facts import GraphFacts
from attnpass.matching.layout import Lead
from attnpass.matching.products import Contraction, contraction
from attnpass.matching.refuse import Refuse
from attnpass.matching.steps import Viewed, mixed_map

Positions = dict[str, int]
"""Where axes of a map are, counted from the end."""


def detours(facts: GraphFacts, c: Chain) -> dict[fx.Node, fx.Node]:
    """Steps on a map viewed with split token axes, to the view that joins them again."""
    out: dict[fx.Node, fx.Node] = {}
    first: fx.Node | None = None
    inside: list[fx.Node] = []
    for step in c.steps:
        viewed = isinstance(step, Viewed)
        if first is not None:
            inside.append(step.at)
            if viewed and facts.axes[first] == facts.axes[step.at]:
                out |= dict.fromkeys(inside, step.at)
                first, inside = None, []
        elif viewed and not _same_tokens(facts, operand(step.at), step.at):
            first, inside = operand(step.at), [step.at]
    return out


def query_heads(facts: GraphFacts, scores: Contraction) -> str:
    """The letter of heads that only the queries have (multi-query attention), or ``""``.

    Raises:
        Refuse: condition 1.
    """
    own = {x: scores.own(x) for x in "ab"}
    for side, other in (("a", "b"), ("b", "a")):
        node, letters = side_of(scores, side)
        made = [x for x in own[side] if "feature" in kinds(facts.axes[node][letters.index(x)])]
        if len(own[side]) == 2 and len(own[other]) == 1 and len(made) == 1:
            return made[0]
    if any(len(x) != 1 for x in (scores.summed, *own.values())):
        hint = "the logits are no product of rows and columns"
        raise Refuse("map_axes 1", "NOT_ATTENTION:product", hint, scores.node)
    return ""


def sides(
    facts: GraphFacts, c: Chain, skipped: Collection[fx.Node], heads: str
) -> tuple[str, str, Positions]:
    """Which operand of the scores (``a``, ``b``) holds queries, which keys, by softmax's axis.

    Also where rows and columns are on the softmax node. Steps on a detour are ``skipped``.

    Raises:
        Refuse: conditions 2 to 5.
    """
    scores = c.scores
    own = {x: scores.own(x).replace(heads, "") if heads else scores.own(x) for x in "ab"}
    at = {x: scores.out.index(own[x]) - len(scores.out) for x in "ab"}
    for step in c.steps:
        if step.at not in skipped:
            at = moved(facts, step.at, at)
    for side, other in (("a", "b"), ("b", "a")):
        if at[other] == c.dim:
            return side, other, {"rows": at[side], "columns": at[other]}
    hint = "softmax does not run over the keys"
    raise Refuse("map_axes 2", "AXIS_NOT_TOKEN", hint, c.softmax)


def moved(facts: GraphFacts, node: fx.Node, at: Positions) -> Positions:
    """Where axes of a map are after one operator.

    Raises:
        Refuse: conditions 3 to 5.
    """
    if mixed_map(node) is not None:
        return _mixed(node, at)
    if op_name(node) in operators.TRANSPOSES:
        order = permuted(node)
        return {x: order.index(i % len(order)) - len(order) for x, i in at.items()}
    if op_name(node) in operators.VIEWS:
        if set(at.values()) != {-1, -2}:
            hint = "the map is viewed with its tokens not last"
            raise Refuse("map_axes 4", "AXIS_UNPROVEN", hint, node)
        if not _same_tokens(facts, operand(node), node):
            hint = "a view of the map mixes its token axes"
            raise Refuse("map_axes 5", "AXIS_UNPROVEN", hint, node)
    return at


def _mixed(node: fx.Node, at: Positions) -> Positions:
    """Where axes of a map are after an operator that combines its heads."""
    hint = "tokens of the map are mixed"
    if op_name(node) == "einsum":
        product = contraction(node)
        assert product is not None
        letters = {x: product.a_letters[i] for x, i in at.items()}
        if any(x in product.summed for x in letters.values()):
            raise Refuse("map_axes 3", "AXIS_NOT_TOKEN", hint, node)
        return {x: product.out.index(y) - len(product.out) for x, y in letters.items()}
    touched = 1 - value(node).dim() if op_name(node) == "conv2d" else -1
    if touched in at.values():
        raise Refuse("map_axes 3", "AXIS_NOT_TOKEN", hint, node)
    return at


def _same_tokens(facts: GraphFacts, before: fx.Node, after: fx.Node) -> bool:
    """Whether a view leaves the last two axes of a map as they are."""
    return facts.axes[before][-2:] == facts.axes[after][-2:]


def side_of(product: Contraction, side: str) -> tuple[fx.Node, str]:
    """The operand of a product on one side (``a`` or ``b``) with its letters."""
    return (product.a, product.a_letters) if side == "a" else (product.b, product.b_letters)


def is_distribution(facts: GraphFacts, node: fx.Node, letters: str, summed: str) -> bool:
    """Whether a tensor is a softmax or its logarithm along one of the letters ``summed``."""
    axes = {facts.axes[node][letters.index(c)] for c in summed if c in letters}
    passed = operators.CASTS | operators.VIEWS | operators.TRANSPOSES | {"dropout", "mul", "div"}
    while op_name(node) in passed and len(node.all_input_nodes) == 1:
        node = operand(node)
    if op_name(node) not in (*operators.SOFTMAX, "log_softmax"):
        return False
    return facts.axes[node][number(node, 1) % value(node).dim()] in axes


def same_heads(a: Lead, b: Lead) -> bool:
    """Whether two places of a chain have the same heads; at equal rank, in the same axis."""
    return a == b if a.count == b.count else a.heads == b.heads


def last_of(c: Chain) -> Any:
    """The node whose value the second product reads: the weights as they arrive there."""
    return c.after[-1] if c.after else c.softmax
