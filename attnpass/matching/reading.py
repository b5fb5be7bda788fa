"""One attention as it stands in a graph: operands, logits and result, with their layouts.

Soundness: the operands and the result are the very tensors of the graph, and the result is
``softmax(logits) v`` in the recorded layouts. Conditions, beside those of ``chain``, ``map_axes``
and ``logits``:

1. The head dim that decides the fused operator's scale is a known number.
2. The weights and the values have the heads that queries and keys have.
3. The values are not computed from the weights, and are no weights over the same axis.
4. The second product sums over the axis over which softmax ran.
5. At most one sink is joined, and exactly its column is dropped before the values.
6. The product of queries and keys runs over features, not over tokens (else: channel attention).
7. Softmax compares tokens, not features; or features that are older than those of condition 6.
8. An operand has every leading axis of its product; keys and values may lack the heads.

Shapes: B batch, H query heads, T queries, S keys, d head dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import fx

from attnpass.graph import op_name, value
from attnpass.matching import map_axes
from attnpass.matching.chain import Chain, made_from
from attnpass.matching.factors import Axis, kinds, surer
from attnpass.matching.facts import GraphFacts
from attnpass.matching.layout import SHARED, Lead, Operand, absorb, lead_of
from attnpass.matching.logits import Logits, read_logits, read_mask
from attnpass.matching.map_axes import Positions, is_distribution, same_heads, side_of
from attnpass.matching.recipe import Recipe
from attnpass.matching.refuse import Refuse
from attnpass.matching.steps import MixedHeads, SinkJoined, SoftCapped, Transposed, mixed_map


@dataclass(frozen=True)
class Reading:
    """One attention as it was read, before anything is concluded from it.

    Attributes:
        q, k, v, out: operands and result with their layouts. rows, columns: queries' and keys'
            provenance. logits: between product and softmax. dropout: on the weights.
        escapes: nodes that read the map elsewhere.
        softmax: the softmax node with its layout, None where its heads are not the site's.
        softcap, mixed, sink: see ``AttentionSite``.
    """

    q: Operand
    k: Operand
    v: Operand
    out: Operand
    rows: Axis
    columns: Axis
    logits: Logits
    dropout: float = 0.0
    escapes: tuple[fx.Node, ...] = ()
    softmax: Operand | None = None
    softcap: bool = False
    mixed: bool = False
    sink: bool = False


def fused_reading(facts: GraphFacts, anchor: fx.Node) -> Reading:
    """From ``scaled_dot_product_attention`` in any call shape.

    Raises:
        Refuse: a condition does not hold.
    """
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given: dict[str, Any] = dict(zip(names, anchor.args, strict=False))
    given |= dict(anchor.kwargs)
    q, k, v = (given[name] for name in names[:3])
    shape, rank = value(q).shape, value(q).dim()
    # queries that are the same for all items or heads: the result has the leading axes
    whole = q if value(q).shape[:-2] == value(anchor).shape[:-2] else anchor
    lead = facts.lead(whole, range(rank - 2))
    order = (*lead.order, rank - 2, rank - 1)
    scale = given.get("scale")
    if scale is None:
        if not isinstance(shape[-1], int):
            raise Refuse("reading 1", "DYNAMIC_AXIS", "the head dim is symbolic", anchor)
        scale = 1 / math.sqrt(shape[-1])
    logits = Logits(scale=float(scale), causal=bool(given.get("is_causal")))
    if logits.causal:
        logits.factors.add("causal")
    if given.get("attn_mask") is not None:
        mask, sizes = given["attn_mask"], (shape[-2], value(k).shape[-2])
        facts.refuse_written(mask, anchor, "logits 6")
        logits.take(read_mask(facts, Recipe(mask), sizes, lead), lead, whole)
    if logits.fill == -math.inf:
        logits.fill = None  # the fused operator gives 0 where no key is kept
    q_axes, k_axes = facts.axes[q], facts.axes[k]
    _check(facts, anchor, (q_axes[-1], k_axes[-1]), (q_axes[-2], k_axes[-2]))
    queries, keys, values = (Operand(*absorb(x, order, anchor), lead) for x in (q, k, v))
    return Reading(
        queries,
        keys,
        values,
        out=Operand(anchor, order, lead),
        rows=q_axes[-2],
        columns=k_axes[-2],
        logits=logits,
        dropout=float(given.get("dropout_p") or 0.0),
    )


def eager_reading(facts: GraphFacts, c: Chain) -> Reading:
    """From a softmax between two products.

    Raises:
        Refuse: a condition does not hold.
    """
    scores, heads = c.scores, map_axes.query_heads(facts, c.scores)
    detours = map_axes.detours(facts, c)
    side, other, at = map_axes.sides(facts, c, detours, heads)
    q, q_letters = side_of(scores, side)
    k, k_letters = side_of(scores, other)
    t = scores.own(side).replace(heads, "") if heads else scores.own(side)
    s, d = scores.own(other), scores.summed
    together = "".join(x for x in scores.out if x in scores.batch + heads)

    def q_axis(letter: str) -> Axis:
        return facts.axes[q][q_letters.index(letter)]

    def k_axis(letter: str) -> Axis:
        return facts.axes[k][k_letters.index(letter)] if letter in k_letters else ()

    lead = lead_of(
        [surer(q_axis(x), k_axis(x)) for x in together],
        [value(scores.node).shape[scores.out.index(x)] for x in together],
    )
    _check(facts, c.softmax, (q_axis(d), k_axis(d)), (q_axis(t), k_axis(s)))
    batch = [together[i] for i in lead.order]
    queries = _operand(q, q_letters, [*batch, t, d], lead, scores.node)
    keys = _operand(k, k_letters, [*batch, s, d], lead, scores.node)
    values, out = _values(facts, c, at, bool(heads))
    if not same_heads(values.lead, lead):
        hint = "heads of weights and values differ"
        raise Refuse("reading 2", "AXIS_UNPROVEN", hint, c.softmax)
    mixed = c.has(Transposed, MixedHeads) or any(mixed_map(n) is not None for n in c.after)
    logits = Logits()
    if not mixed:
        sizes = value(q).shape[q_letters.index(t)], value(k).shape[k_letters.index(s)]
        upright = scores.out == together + t + s
        logits = read_logits(facts, c, lead, sizes, upright, detours)
    return Reading(
        queries,
        keys,
        values,
        out,
        rows=q_axis(t),
        columns=k_axis(s),
        logits=logits,
        dropout=c.dropout,
        escapes=tuple(c.escapes),
        softmax=_softmax(facts, c, at, lead),
        softcap=c.has(SoftCapped),
        mixed=mixed,
        sink=c.has(SinkJoined),
    )


def _softmax(facts: GraphFacts, c: Chain, at: Positions, lead: Lead) -> Operand | None:
    """The softmax node with its layout, None where its heads are not those of the site."""
    rank = value(c.softmax).dim()
    rows, columns = (at[x] % rank for x in ("rows", "columns"))
    others = [i for i in range(rank) if i not in (rows, columns)]
    stage = facts.lead(c.softmax, others)
    order = (*(others[i] for i in stage.order), rows, columns)
    return Operand(c.softmax, order, stage) if same_heads(stage, lead) else None


def _values(facts: GraphFacts, c: Chain, at: Positions, shared: bool) -> tuple[Operand, Operand]:
    """Values and result of the second product; ``shared``: keys and values have no heads."""
    product = c.output
    assert product is not None
    last = map_axes.last_of(c)
    side, other = ("a", "b") if product.a is last else ("b", "a")
    if made_from(side_of(product, other)[0], c.softmax):
        hint = "the weights are multiplied by themselves"
        raise Refuse("reading 3", "NOT_ATTENTION:product", hint, last)
    if is_distribution(facts, *side_of(product, other), product.summed):
        hint = "the weights meet other weights, over the axis along which these sum up to 1"
        raise Refuse("reading 3", "NOT_ATTENTION:product", hint, last)
    _, weights = side_of(product, side)
    v, letters = side_of(product, other)
    rows, own = product.own(side), product.own(other)
    for node in c.after:
        if op_name(node) == "slice":
            _without_sink(c, node)
        else:
            at = map_axes.moved(facts, node, at)
    heads = rows.replace(weights[at["rows"]], "") if shared else ""
    if heads:
        rows = weights[at["rows"]]
    if weights[at["columns"]] != product.summed or len(own) != 1 or len(rows) != 1:
        hint = "the weights are not summed over the softmax axis"
        raise Refuse("reading 4", "AXIS_NOT_TOKEN", hint, product.node)
    together = "".join(x for x in weights if x in product.batch + heads)
    lead = facts.lead(last, [weights.index(x) for x in together])
    batch = [together[i] for i in lead.order]
    order = tuple(product.out.index(x) for x in (*batch, rows, own))
    values = _operand(v, letters, [*batch, product.summed, own], lead, product.node)
    return values, Operand(product.node, order, lead)


def _without_sink(c: Chain, node: fx.Node) -> None:
    """Refuse a slice of the weights that does not drop the sink and nothing else."""
    joined = [step.at for step in c.steps if isinstance(step, SinkJoined)]
    if len(joined) != 1:
        raise Refuse("reading 5", "SINK", "more than one sink", node)
    parts: Any = joined[0].args[0]
    (keys,) = (p for p in parts if value(p).shape[-1] != 1)
    start = 0 if parts[0] is keys else 1
    begin = node.args[2] if len(node.args) > 2 else 0
    step = node.args[4] if len(node.args) > 4 else 1
    if begin != start or step != 1 or value(node).shape[-1] != value(keys).shape[-1]:
        hint = "the sink's column is not dropped before the values"
        raise Refuse("reading 5", "SINK", hint, node)


def _check(
    facts: GraphFacts, anchor: fx.Node, summed: tuple[Axis, Axis], own: tuple[Axis, Axis]
) -> None:
    """Features are contracted and tokens compared; anything else is another thing.

    Tokens that a linear layer made are features that are older than those that are contracted.
    """
    if "token" in kinds(summed[0]) | kinds(summed[1]) or facts.crossed(summed, own):
        hint = "the product runs over tokens"
        raise Refuse("reading 6", "NOT_ATTENTION:channel", hint, anchor)
    if facts.made(*own) >= max(0, facts.made(*summed)):
        hint = "softmax compares features, not tokens"
        raise Refuse("reading 7", "AXIS_NOT_TOKEN", hint, anchor)


def _operand(node: fx.Node, letters: str, want: list[str], lead: Lead, until: fx.Node) -> Operand:
    """An operand of the product ``until``, with its letters in the order ``want``."""
    missing = set(want) - set(letters)
    head = want[lead.count - 1] if lead.paired and lead.split < 0 else ""
    if set(letters) - set(want) or missing - {head}:
        hint = "an operand broadcasts over a leading axis"
        raise Refuse("reading 8", "AXIS_UNPROVEN", hint, node)
    at = tuple(SHARED if x in missing else letters.index(x) for x in want)
    return Operand(*absorb(node, at, until), lead)
