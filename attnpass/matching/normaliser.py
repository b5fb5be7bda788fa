"""A softmax whose logits are not all understood: it is attention, and it alone may be exchanged.

This is the least that is known of a site (degree ``logits``). What the model does to the logits
and to the weights stays as it wrote it, so nothing has to be proven of these operators.

Soundness: softmax's weights are summed with values along the softmax's own axis, and the logits
are made from a product of two activations over features. Conditions:

1. A product of two activations, or a sum of every row of one and every row of another, reaches
   the logits. Where a projection or norm is on the way, both
   own axes of the product are still axes of the logits.
2. Every value that is made from the weights along their axis ends in a product that sums over it,
   else it is a reader (``escapes``), as is what joins the weights with something made from them;
   there is at least one such product.
3. The values of that product are activations that are not made from the same softmax, and are
   no weights over the same axis.
4. The product behind the logits sums over features. Where its rows or columns are made by a
   projection as well, the features that it sums over were made later than the queries' rows: else
   it is channel attention.
5. The softmax runs over an axis that only one operand of the product has, or over one whose
   origin is not known; never over the queries' own.
6. Keys that no activation reaches have values that all queries share: else they are a router's
   codes, which choose among what experts made of each query.

Not covered: which positions are masked. A form takes a logit at or below ``FILL`` for a mask when
it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from attnpass.graph import number, op_name, operators, value
from attnpass.matching.factors import Axes, Axis, kinds
from attnpass.matching.facts import GraphFacts
from attnpass.matching.layout import Operand
from attnpass.matching.map_axes import side_of
from attnpass.matching.products import Contraction, any_product, pairs
from attnpass.matching.refuse import Refuse
from attnpass.matching.weight_readers import MOST, Followed, WeightReaders, is_parameter, makes

_ENDS = operators.SOFTMAX | {"scaled_dot_product_attention"}


@dataclass(frozen=True)
class Normaliser:
    """A softmax with the products around it.

    Attributes:
        scores: the product that its logits come from. queries: its operand with the rows (a, b).
        weights: the softmax node with its layout. output: the first product with values.
        values: the operand of ``output`` that holds them.
        rows, columns: provenance of both axes. escapes: nodes that read the weights elsewhere.
    """

    scores: Contraction
    queries: str
    weights: Operand
    output: Contraction
    values: fx.Node
    rows: Axis
    columns: Axis
    escapes: tuple[fx.Node, ...] = ()


def read_normaliser(facts: GraphFacts, softmax: fx.Node) -> Normaliser:
    """The softmax as the normaliser of an attention.

    Raises:
        Refuse: a condition does not hold.
    """
    rank = value(softmax).dim()
    if rank < 2:
        raise Refuse("normaliser 2", "NOT_ATTENTION:pooling", "softmax of one row", softmax)
    dim = number(softmax, 1) % rank
    found = WeightReaders.of(facts, softmax, dim)
    if not found.products:
        hint = "the softmax weights never meet values in a product over their axis"
        raise Refuse("normaliser 2", "NOT_ATTENTION:gate", hint, softmax)
    output, values = found.products[0]
    first: Refuse | None = None
    for source in _sources(facts, softmax):
        scores = source.scores
        try:
            queries, at = _compared(facts, source, softmax, dim)
        except Refuse as no:
            first = first or (None if source.made else no)
            continue
        break
    else:
        hint = "the logits are not made from a product of two activations"
        raise first or Refuse("normaliser 1", "NOT_ATTENTION:pooling", hint, softmax)
    own = scores.own(queries)
    node, letters = side_of(scores, queries)
    others = [i for i in range(rank) if i != dim]
    if at is None:  # what no projection made
        axes = facts.axes[softmax]
        at = next((i for i in reversed(others) if "feature" not in kinds(axes[i])), others[-1])
    keys = side_of(scores, "b" if queries == "a" else "a")[0]
    if is_parameter(facts, keys, made=True) and _own_values(facts, softmax, at, output, values):
        hint = "fixed keys choose among values that each query has for itself: experts"
        raise Refuse("normaliser 6", "NOT_ATTENTION:router", hint, softmax)
    leading = [i for i in others if i != at]
    lead = facts.lead(softmax, leading)
    order = (*(leading[i] for i in lead.order), at, dim)
    return Normaliser(
        scores,
        queries,
        Operand(softmax, order, lead),
        output,
        values,
        rows=facts.axes[node][letters.index(own)] if len(own) == 1 else (),
        columns=facts.axes[softmax][dim],
        escapes=tuple(found.escapes),
    )


def _own_values(
    facts: GraphFacts, softmax: fx.Node, row: int, output: Contraction, values: fx.Node
) -> bool:
    """Whether each row of the weights meets values of its own (condition 6)."""
    walk, live, node = Followed(facts, softmax, {row: "a"}), {softmax}, softmax.next
    while node is not output.node:
        if not live.isdisjoint(node.all_input_nodes) and walk.step(node, {"a"}):
            live.add(node)
        node = node.next
    side = "b" if output.a is values else "a"
    weights, letters = side_of(output, side)
    own = dict(zip(letters, walk.axes[weights], strict=True)) if weights in live else {}
    mine = facts.axes[values], side_of(output, "b" if side == "a" else "a")[1]
    return any(
        "a" in kinds(own.get(c, ())) and kinds(axis).isdisjoint({"repeat", "unknown"})
        for axis, c in zip(*mine, strict=True)
    )


def _is_no_operand(facts: GraphFacts, node: fx.Node) -> bool:
    """Whether a tensor is nothing that is compared: parameters, or weights of an attention."""
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        at = stack.pop()
        if op_name(at) in operators.SOFTMAX:
            return True
        passes = at.op == "call_function" and any_product(at) is None and not makes(at)
        if at not in seen and passes:
            seen.add(at)
            stack.extend(at.all_input_nodes[:1])
    return is_parameter(facts, node)


@dataclass(frozen=True)
class _Source:
    """A product that logits may be made from.

    Attributes:
        scores: the product. between: the nodes that stand between some product and the softmax.
        made: whether a projection or norm is among them.
    """

    scores: Contraction
    between: set[fx.Node]
    made: bool


def _sources(facts: GraphFacts, softmax: fx.Node) -> Iterator[_Source]:
    """Products of two activations that logits are made from, the nearest first (condition 1).

    Sums of every row of one and every row of another come last: a bias may be made as they are.
    """
    sums: list[_Source] = []
    for made in (False, True):
        between: set[fx.Node] = set()
        ends: list[Contraction] = []
        row = list(softmax.all_input_nodes)
        while row and len(between) < MOST:
            behind: list[fx.Node] = []
            for node in row:
                if node in between or node.op != "call_function" or op_name(node) in _ENDS:
                    continue
                product = any_product(node)
                if makes(node) and not made:
                    continue
                if product is None or makes(node):
                    between.add(node)
                    behind.extend(node.all_input_nodes)
                    pair = pairs(node)
                    if pair and not any(_is_no_operand(facts, x) for x in (pair.a, pair.b)):
                        sums.append(_Source(pair, between, made))
                elif not any(_is_no_operand(facts, x) for x in (product.a, product.b)):
                    ends.append(product)
            row = behind
        yield from (_Source(product, between, made) for product in ends)
    yield from sums


def _compared(
    facts: GraphFacts, source: _Source, softmax: fx.Node, dim: int
) -> tuple[str, int | None]:
    """Which operand holds the queries, and the softmax's axis of rows where that is known.

    Raises:
        Refuse: condition 1, 4 or 5.
    """
    scores = source.scores
    if source.scores.summed or pairs(scores.node) is None:
        _check_summed(facts, scores)
    owns = {side: scores.own(side) for side in "ab"}
    marks = {scores.out.index(c): side for side in "ab" for c in owns[side]}
    marks |= {scores.out.index(c): "both" for c in scores.batch}
    walk, at = Followed(facts, scores.node, marks), softmax.all_input_nodes[0]
    live = {scores.node}
    for node in sorted(source.between):
        reads = node > scores.node and not live.isdisjoint(node.all_input_nodes)
        if reads and walk.step(node, {"a", "b", "both"}):
            live.add(node)
    axes: Axes = walk.axes[at] if at in live else ()
    known = kinds(axes[dim]) & {"a", "b"} if axes else set()
    if len(known) == 1:
        (keys,) = known
        queries = "b" if keys == "a" else "a"
        rows = [i for i, axis in enumerate(axes) if queries in kinds(axis) and i != dim]
        _check_rows(facts, scores, queries, softmax)
        if rows or not source.made:
            return queries, rows[-1] if rows else None
    if axes and "both" in kinds(axes[dim]):
        hint = "softmax runs over an axis that both operands of the product have"
        raise Refuse("normaliser 5", "AXIS_NOT_TOKEN", hint, softmax)
    if source.made:
        hint = "a projection or norm makes the logits anew"
        raise Refuse("normaliser 1", "NOT_ATTENTION:pooling", hint, softmax)
    column = facts.axes[softmax][dim]
    if "feature" in kinds(column):
        hint = "softmax compares features, not tokens"
        raise Refuse("normaliser 5", "AXIS_NOT_TOKEN", hint, softmax)
    return "a", None


def _check_summed(facts: GraphFacts, scores: Contraction) -> None:
    """Condition 4, its first half: one of the summed axes holds features."""
    summed = [
        {kind for side in "ab" for axis in _axes(facts, scores, side, c) for kind in kinds(axis)}
        for c in scores.summed
    ]
    if not summed:
        hint = "the product sums over nothing"
        raise Refuse("normaliser 4", "NOT_ATTENTION:product", hint, scores.node)
    if any("feature" in x and "token" not in x for x in summed):
        return
    crossed = facts.crossed(
        *(
            [x for s in "ab" for x in _axes(facts, scores, s, c)]
            for c in (scores.summed, scores.own("a") + scores.own("b"))
        )
    )
    if crossed or any("token" in x for x in summed):
        hint = "the product runs over tokens"
        raise Refuse("normaliser 4", "NOT_ATTENTION:channel", hint, scores.node)


def _check_rows(facts: GraphFacts, scores: Contraction, queries: str, softmax: fx.Node) -> None:
    """Condition 4, its second half: the features were made after the rows."""
    keys = "b" if queries == "a" else "a"
    if not any("feature" in kinds(axis) for axis in _axes(facts, scores, keys, scores.own(keys))):
        return
    over = {
        kind
        for side in "ab"
        for axis in _axes(facts, scores, side, scores.summed)
        for kind in kinds(axis)
    }
    if "feature" not in over:
        hint = "softmax compares features, and the product sums over what may be tokens"
        raise Refuse("normaliser 4", "AXIS_NOT_TOKEN", hint, softmax)
    rows, summed = (
        facts.made(*_axes(facts, scores, queries, which))
        for which in (scores.own(queries), scores.summed)
    )
    if rows >= max(0, summed):
        hint = "softmax compares features, not tokens"
        raise Refuse("normaliser 4", "AXIS_NOT_TOKEN", hint, softmax)


def _axes(facts: GraphFacts, scores: Contraction, side: str, which: str) -> list[Axis]:
    """The axes of some letters of an operand."""
    node, letters = side_of(scores, side)
    return [facts.axes[node][letters.index(c)] for c in which if c in letters]
