"""Where the axes of a map are, step by step from its product to softmax and on to the values.

Rows are queries, columns keys. Followed through views, permutes, and whatever combines heads, by
position and provenance, never by size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from torch import fx

from attnpass.graph import TRANSPOSES, VIEWS, op_name, permuted
from attnpass.matching.chain import Chain
from attnpass.matching.factors import Axes, kinds
from attnpass.matching.layout import Lead, lead_of
from attnpass.matching.products import Contraction, contraction
from attnpass.matching.refuse import Refuse
from attnpass.matching.steps import mixed_map

Positions = dict[str, int]
"""Where axes of a map are, counted from the end."""


class Maps:
    """Follows maps of one graph, given the provenance of its axes."""

    def __init__(self, axes: dict[fx.Node, Axes]) -> None:
        self.axes = axes

    def _lead(self, node: fx.Node, at: Iterable[int]) -> Lead:
        """What the axes ``at`` of a node are as leading axes."""
        at = list(at)
        shape = node.meta["val"].shape
        return lead_of([self.axes[node][i] for i in at], static_sizes([shape[i] for i in at]))

    def _detours(self, c: Chain) -> dict[fx.Node, fx.Node]:
        """Steps on a map viewed with split token axes, to the view that joins them again."""
        out: dict[fx.Node, fx.Node] = {}
        first: fx.Node | None = None
        inside: list[fx.Node] = []
        for term in c.terms:
            if first is not None:
                inside.append(term.at)
                if term.kind == "view" and self.axes[first] == self.axes[term.at]:
                    out |= dict.fromkeys(inside, term.at)
                    first, inside = None, []
            elif term.kind == "view" and not self._same_tokens(term.at.args[0], term.at):
                first, inside = term.at.args[0], [term.at]  # type: ignore[assignment]
        return out

    def _query_heads(self, scores: Contraction) -> str:
        """The letter of heads that only the queries have (multi-query attention), or ``""``.

        Raises:
            Refuse: the logits are no product of one axis of rows and one of columns.
        """
        own = {x: scores.own(x) for x in "ab"}
        for side, other in (("a", "b"), ("b", "a")):
            node, letters = side_of(scores, side)
            made = [x for x in own[side] if "feature" in kinds(self.axes[node][letters.index(x)])]
            if len(own[side]) == 2 and len(own[other]) == 1 and len(made) == 1:
                return made[0]
        if any(len(x) != 1 for x in (scores.summed, *own.values())):
            raise Refuse(
                "NOT_ATTENTION:product",
                "the logits are no product of rows and columns",
                scores.node,
            )
        return ""

    def _sides(
        self, c: Chain, detours: Collection[fx.Node], heads: str
    ) -> tuple[str, str, Positions]:
        """Which operand of the scores holds queries, which keys: softmax runs over the keys.

        Also where rows and columns are on the softmax node.
        """
        scores = c.scores
        own = {x: scores.own(x).replace(heads, "") if heads else scores.own(x) for x in "ab"}
        at = {x: scores.out.index(own[x]) - len(scores.out) for x in "ab"}
        for term in c.terms:
            if term.at not in detours:
                at = self._moved(term.at, at)
        for side, other in (("a", "b"), ("b", "a")):
            if at[other] == c.dim:
                return side, other, {"rows": at[side], "columns": at[other]}
        raise Refuse("AXIS_NOT_TOKEN", "softmax does not run over the keys", c.softmax)

    def _moved(self, node: fx.Node, at: Positions) -> Positions:
        """Where axes of a map (counted from the end) are after one step."""
        source = mixed_map(node)
        if source is not None:
            touched = {"conv2d": 1 - node.meta["val"].dim()}.get(op_name(node), -1)
            if op_name(node) == "einsum":
                product = contraction(node)
                assert product is not None
                letters = {x: product.a_letters[i] for x, i in at.items()}
                if any(x in product.summed for x in letters.values()):
                    raise Refuse("AXIS_NOT_TOKEN", "tokens of the map are mixed", node)
                return {x: product.out.index(y) - len(product.out) for x, y in letters.items()}
            if touched in at.values():
                raise Refuse("AXIS_NOT_TOKEN", "tokens of the map are mixed", node)
        elif op_name(node) in TRANSPOSES:
            order = permuted(node)
            return {x: order.index(i % len(order)) - len(order) for x, i in at.items()}
        elif op_name(node) in VIEWS:
            if set(at.values()) != {-1, -2}:
                raise Refuse("AXIS_UNPROVEN", "the map is viewed with its tokens not last", node)
            if not self._same_tokens(node.args[0], node):
                raise Refuse("AXIS_UNPROVEN", "a view of the map mixes its token axes", node)
        return at

    def _same_tokens(self, before: Any, after: fx.Node) -> bool:
        """Whether a view leaves the last two axes of a map as they are."""
        return self.axes[before][-2:] == self.axes[after][-2:]


def side_of(product: Any, side: str) -> tuple[fx.Node, str]:
    """The operand of a product on one side (``a`` or ``b``) with its letters."""
    return (product.a, product.a_letters) if side == "a" else (product.b, product.b_letters)


def static_sizes(sizes: Iterable[Any]) -> list[int | None]:
    """Sizes as numbers, None where symbolic."""
    return [x if isinstance(x, int) else None for x in sizes]


def same_heads(a: Lead, b: Lead) -> bool:
    """Whether two stages have the same heads; at equal rank, in the same place."""
    return a == b if a.count == b.count else a.heads == b.heads
