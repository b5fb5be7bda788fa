"""One anchor read into a region: the operands, the logits, the result, the block output.

Soundness: in the form ``out = softmax(logits) v`` with the recorded layouts, the region's operands
are the very tensors of the graph. Conditions, beside those of ``chain``, ``map_axes``, ``logits``:

1. The head dims of queries and values are known numbers.
2. The weights and the values have the heads that queries and keys have.
3. The values are not computed from the weights.
4. The second product sums over the axis over which softmax ran.
5. Where a sink was joined there is one, and exactly its column is dropped before the values.
6. The product of queries and keys runs over features, not over tokens (else: channel attention).
7. Softmax compares tokens, not features.
8. Keys and values have the same heads.
9. Keys and values have the same length.
10. An operand has every leading axis of its product; keys and values may lack the heads.
11. No operand and no factor on the queries is written in place.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from attnpass.graph import op_name, operand, value
from attnpass.matching import map_axes
from attnpass.matching.chain import Chain, chains
from attnpass.matching.factors import Axis, kinds, surer
from attnpass.matching.facts import GraphFacts
from attnpass.matching.layout import SHARED, Lead, Operand, absorb, lead_of, ungrouped
from attnpass.matching.legality import Traits
from attnpass.matching.logits import Logits, read_logits, read_mask
from attnpass.matching.map_axes import Positions, same_heads, side_of
from attnpass.matching.recipe import Recipe
from attnpass.matching.refuse import Refuse
from attnpass.matching.region import SDPA, Region
from attnpass.matching.steps import MixedHeads, SinkJoined, SoftCapped, Transposed, mixed_map
from attnpass.matching.surroundings import block_output, patch_grid, projection_weights
from attnpass.site import AttentionSite
from attnpass.torch_internals import expression


@dataclass(frozen=True)
class _Reading:
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


def read_region(facts: GraphFacts, anchor: fx.Node, name: str, source: str) -> Region:
    """The region around ``anchor``, its site named ``name`` and made at ``source``.

    Raises:
        Refuse: it is not attention, or cannot be proven to be.
    """
    if op_name(anchor) == SDPA:
        return _region(facts, _fused(facts, anchor), anchor, name, source)
    first: Refuse | None = None
    for candidate in chains(anchor):
        try:
            return _region(facts, _eager(facts, candidate), anchor, name, source)
        except Refuse as no:
            first = first or no
    assert first is not None
    raise first


def _fused(facts: GraphFacts, anchor: fx.Node) -> _Reading:
    """From ``scaled_dot_product_attention`` in any call shape."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given: dict[str, Any] = dict(zip(names, anchor.args, strict=False))
    given |= dict(anchor.kwargs)
    q, k, v = (given[name] for name in names[:3])
    shape, rank = value(q).shape, value(q).dim()
    lead = facts.lead(q, range(rank - 2))
    order = (*lead.order, rank - 2, rank - 1)
    scale = given.get("scale")
    if scale is None:
        if not isinstance(shape[-1], int):
            raise Refuse("reader 1", "DYNAMIC_AXIS", "the head dim is symbolic", anchor)
        scale = 1 / math.sqrt(shape[-1])
    logits = Logits(scale=float(scale), causal=bool(given.get("is_causal")))
    if logits.causal:
        logits.factors.add("causal")
    if given.get("attn_mask") is not None:
        sizes = (shape[-2], value(k).shape[-2])
        logits.take(read_mask(facts, Recipe(given["attn_mask"]), sizes, lead), lead, q)
    if logits.fill == -math.inf:
        logits.fill = None  # the fused operator gives 0 where no key is kept
    q_axes, k_axes = facts.axes[q], facts.axes[k]
    _check(anchor, q_axes[-1], k_axes[-1], q_axes[-2], k_axes[-2])
    queries, keys, values = (Operand(*absorb(x, order, anchor), lead) for x in (q, k, v))
    return _Reading(
        queries,
        keys,
        values,
        out=Operand(anchor, order, lead),
        rows=q_axes[-2],
        columns=k_axes[-2],
        logits=logits,
        dropout=float(given.get("dropout_p") or 0.0),
    )


def _eager(facts: GraphFacts, c: Chain) -> _Reading:
    """From a softmax between two products."""
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
        [value(q).shape[q_letters.index(x)] for x in together],
    )
    _check(c.softmax, q_axis(d), k_axis(d), q_axis(t), k_axis(s))
    batch = [together[i] for i in lead.order]
    queries = _operand(q, q_letters, [*batch, t, d], lead, scores.node)
    keys = _operand(k, k_letters, [*batch, s, d], lead, scores.node)
    values, out = _values(facts, c, at, bool(heads))
    if not same_heads(values.lead, lead):
        hint = "heads of weights and values differ"
        raise Refuse("reader 2", "AXIS_UNPROVEN", hint, c.softmax)
    mixed = c.has(Transposed, MixedHeads) or any(mixed_map(n) is not None for n in c.after)
    logits = Logits()
    if not mixed:
        sizes = value(q).shape[q_letters.index(t)], value(k).shape[k_letters.index(s)]
        upright = scores.out == together + t + s
        logits = read_logits(facts, c, lead, sizes, upright, detours)
    return _Reading(
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
    if _made_from(side_of(product, other)[0], c.softmax):
        hint = "the weights are multiplied by themselves"
        raise Refuse("reader 3", "NOT_ATTENTION:product", hint, last)
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
        raise Refuse("reader 4", "AXIS_NOT_TOKEN", hint, product.node)
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
        raise Refuse("reader 5", "SINK", "more than one sink", node)
    parts: Any = joined[0].args[0]
    (keys,) = (p for p in parts if value(p).shape[-1] != 1)
    start = 0 if parts[0] is keys else 1
    begin = node.args[2] if len(node.args) > 2 else 0
    step = node.args[4] if len(node.args) > 4 else 1
    if begin != start or step != 1 or value(node).shape[-1] != value(keys).shape[-1]:
        hint = "the sink's column is not dropped before the values"
        raise Refuse("reader 5", "SINK", hint, node)


def _check(anchor: fx.Node, q_sum: Axis, k_sum: Axis, rows: Axis, columns: Axis) -> None:
    """Features are contracted and tokens compared; anything else is another thing."""
    if "token" in kinds(q_sum) | kinds(k_sum):
        hint = "the product runs over tokens"
        raise Refuse("reader 6", "NOT_ATTENTION:channel", hint, anchor)
    if "feature" in kinds(rows) | kinds(columns):
        hint = "softmax compares features, not tokens"
        raise Refuse("reader 7", "AXIS_NOT_TOKEN", hint, anchor)


@dataclass(frozen=True)
class _Grouped:
    """Keys and values before they were repeated for grouped queries, and the sizes of a site."""

    k: Operand
    v: Operand
    kv_heads: int
    head_dim: int
    value_dim: int
    queries: Any
    keys: Any


def _grouped(r: _Reading, anchor: fx.Node) -> _Grouped:
    """The sizes of an attention, its keys and values with their own heads."""
    (k, group), (v, v_group) = ungrouped(r.k), ungrouped(r.v)
    if group != v_group:
        k, v, group = r.k, r.v, 1
    if k.lead.paired and _heads(k) != _heads(v):
        hint = "keys and values have different heads"
        raise Refuse("reader 8", "AXIS_UNPROVEN", hint, anchor)
    own = _heads(k) if k.lead.paired else r.q.lead.heads // group
    head_dim, value_dim = (value(x.node).shape[x.permutation[-1]] for x in (r.q, v))
    if not isinstance(head_dim, int) or not isinstance(value_dim, int):
        raise Refuse("reader 1", "DYNAMIC_AXIS", "the head dim is symbolic", anchor)
    t, s, values = (value(x.node).shape[x.permutation[-2]] for x in (r.q, k, v))
    if expression(s) != expression(values):
        hint = "keys and values differ in length"
        raise Refuse("reader 9", "AXIS_UNPROVEN", hint, anchor)
    return _Grouped(k, v, own, head_dim, value_dim, t, s)


def _region(facts: GraphFacts, r: _Reading, anchor: fx.Node, name: str, source: str) -> Region:
    """The record and the region from an attention that was read."""
    for node in (r.q.node, r.k.node, r.v.node, *(p.recipe.base for p, _ in r.logits.tempers)):
        facts.refuse_written(node, "reader 11")
    sizes = _grouped(r, anchor)
    kind = "self" if r.rows == r.columns else "class" if sizes.queries == 1 else "cross"
    block, output = block_output(facts, r.out.node, r.rows)
    weights = projection_weights(facts, [r.q.node, sizes.k.node, sizes.v.node])
    grid, prefix = patch_grid(r.rows)
    logits = r.logits
    site = AttentionSite(
        name=name,
        kind=kind,
        heads=r.q.lead.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        value_dim=sizes.value_dim,
        query_len=_length(sizes.queries),
        key_len=_length(sizes.keys),
        scale=None if logits.tempers else logits.scale,
        mask=frozenset(logits.factors),
        fill=logits.fill,
        swapped=r.softcap or r.mixed or bool(r.escapes),
        mixed=r.mixed,
        sink=r.sink,
        added=logits.added and not _swallows(anchor, logits.fill),
        bias=bool(logits.biases),
        dropout=r.dropout,
        width=None if block is None else int(value(block).shape[-1]),
        grid=grid,
        prefix=prefix,
        weights=tuple(tuple(value(n).shape) for n in weights),
        source=source,
    )
    return Region(
        site=site,
        traits=_traits(r, site, sizes),
        anchor=anchor,
        q=r.q,
        k=sizes.k,
        v=sizes.v,
        out=r.out,
        logits=logits,
        weights=r.softmax,
        block_out=block,
        tokens=r.rows,
        parameters=weights,
        output=output,
    )


def _traits(r: _Reading, site: AttentionSite, sizes: _Grouped) -> Traits:
    """The facts that decide which forms are legal."""
    return Traits(
        kind=site.kind,
        mask=site.mask,
        bias=site.bias,
        dropout=site.dropout,
        escapes=r.escapes[0].name if r.escapes else "",
        softcap=r.softcap,
        mixed=r.mixed,
        sink=r.sink,
        swappable=r.softmax is not None,
        cached=site.kind == "cross" and any(f.parts and f.kind == "input" for f in r.columns),
        same_len=expression(sizes.queries) == expression(sizes.keys),
        value_dim_differs=sizes.head_dim != sizes.value_dim,
    )


def _swallows(anchor: fx.Node, fill: float | None) -> bool:
    """Whether adding the fill is setting it: nothing smaller can be told from it."""
    return fill is None or fill <= torch.finfo(value(operand(anchor)).dtype).min


def _operand(node: fx.Node, letters: str, want: list[str], lead: Lead, until: fx.Node) -> Operand:
    """An operand of the product ``until``, with its letters in the order ``want``."""
    missing = set(want) - set(letters)
    head = want[lead.count - 1] if lead.paired and lead.split < 0 else ""
    if set(letters) - set(want) or missing - {head}:
        hint = "an operand broadcasts over a leading axis"
        raise Refuse("reader 10", "AXIS_UNPROVEN", hint, node)
    at = tuple(SHARED if x in missing else letters.index(x) for x in want)
    return Operand(*absorb(node, at, until), lead)


def _heads(x: Operand) -> int:
    """The size of an operand's own head axis; 1 where it is shared."""
    if x.lead.split >= 0:
        return x.lead.heads
    at = x.permutation[x.lead.count - 1]
    return 1 if at == SHARED else int(value(x.node).shape[at])


def _made_from(node: fx.Node, source: fx.Node) -> bool:
    """Whether ``node`` is computed from ``source``; only nodes behind it are looked at."""
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        node = stack.pop()
        if node is source:
            return True
        if node not in seen and node > source:
            seen.add(node)
            stack.extend(node.all_input_nodes)
    return False


def _length(size: Any) -> int | str:
    """A length as a site shows it: a number, or the name of a symbolic size."""
    return size if isinstance(size, int) else str(size)
