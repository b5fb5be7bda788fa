"""One anchor read into a region: the public site and the nodes that a rewrite needs.

What cannot be read in full is read as far as ``normaliser`` goes: its softmax alone is known.

Soundness: the region's keys and values have their own heads, and its sizes are those of every call
that the guards allow. Conditions, beside those of ``reading``:

1. The head dims of queries and values are known numbers.
2. Keys and values have the same heads.
3. Keys and values have the same length; where two symbols stand for it, a guard says so.
4. No operand, mask or factor on the queries is written in place between its first reader and the
   attention's result, where the rewritten attention reads it.
5. The logits and the weights are not written in place on their way, also through a view.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, D width.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from attnpass.graph import op_name, operand, value
from attnpass.matching.chain import Chain, chains
from attnpass.matching.factors import kinds
from attnpass.matching.facts import GraphFacts
from attnpass.matching.layout import SHARED, Lead, Operand, ungrouped
from attnpass.matching.legality import Traits
from attnpass.matching.logits import Logits
from attnpass.matching.map_axes import side_of
from attnpass.matching.normaliser import Normaliser, read_normaliser
from attnpass.matching.reading import Reading, eager_reading, fused_reading
from attnpass.matching.refuse import Refuse
from attnpass.matching.region import SDPA, Region
from attnpass.matching.surroundings import block_output, patch_grid, projection_weights
from attnpass.site import AttentionSite, Decline
from attnpass.torch_internals import expression


def read_region(facts: GraphFacts, anchor: fx.Node, name: str, source: str) -> Region:
    """The region around ``anchor``, its site named ``name`` and made at ``source``.

    Raises:
        Refuse: it is not attention, or cannot be proven to be.
    """
    if op_name(anchor) == SDPA:
        return _region(facts, fused_reading(facts, anchor), anchor, name, source)
    try:
        found = _whole(facts, anchor, name, source)
    except Refuse as no:
        if no.code in FINAL:
            raise
        try:
            return _normaliser(facts, read_normaliser(facts, anchor), no, name, source)
        except Refuse as lesser:
            raise (lesser if lesser.condition == "normaliser 6" else no) from None
    if not found.traits.escapes:
        return found
    with suppress(Refuse):
        least = read_normaliser(facts, anchor)
        if not least.escapes:  # what reads the weights are products with other values
            hint = "the weights are read by several products"
            why = Refuse("reading 3", "PROBS_ESCAPE", hint, anchor)
            return _normaliser(facts, least, why, name, source)
    return found


FINAL = ("CROSS_GRAPH", "HOP_UNSUPPORTED", "NOT_ATTENTION:channel")
"""Reasons against an attention that no lesser degree answers."""


def _whole(facts: GraphFacts, anchor: fx.Node, name: str, source: str) -> Region:
    """The region of an attention of which all is proven.

    Raises:
        Refuse: something is not.
    """
    first: Refuse | None = None
    for candidate in chains(anchor, facts.parameters):
        try:
            found = _region(facts, eager_reading(facts, candidate), anchor, name, source)
            _refuse_written_map(facts, candidate)
            return found
        except Refuse as no:
            first = first or no
    assert first is not None
    raise first


def _refuse_written_map(facts: GraphFacts, c: Chain) -> None:
    """Refuse logits and weights that are written on their way, also through a view."""
    assert c.output is not None
    for node in (c.scores.node, *(step.at for step in c.steps), c.softmax, *c.after):
        for by in facts.written.get(node, ()):
            if node < by < c.output.node:
                hint = "the logits or the weights are written in place through a view"
                raise Refuse("reader 5", "MUTATED_ALIAS", hint, by)


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


def _grouped(r: Reading, anchor: fx.Node) -> _Grouped:
    """The sizes of an attention, its keys and values with their own heads."""
    (k, group), (v, v_group) = ungrouped(r.k), ungrouped(r.v)
    if group != v_group:
        k, v, group = r.k, r.v, 1
    if k.lead.paired and _heads(k) != _heads(v):
        hint = "keys and values have different heads"
        raise Refuse("reader 2", "AXIS_UNPROVEN", hint, anchor)
    own = _heads(k) if k.lead.paired else r.q.lead.heads // group
    head_dim, value_dim = (value(x.node).shape[x.permutation[-1]] for x in (r.q, v))
    if not isinstance(head_dim, int) or not isinstance(value_dim, int):
        raise Refuse("reader 1", "DYNAMIC_AXIS", "the head dim is symbolic", anchor)
    t, s, values = (value(x.node).shape[x.permutation[-2]] for x in (r.q, k, v))
    # a fused operator asks for it; of two symbols the comparison makes a guard
    if expression(s) != expression(values) and not bool(s == values):
        hint = "keys and values differ in length"
        raise Refuse("reader 3", "AXIS_UNPROVEN", hint, anchor)
    return _Grouped(k, v, own, head_dim, value_dim, t, s)


def _region(facts: GraphFacts, r: Reading, anchor: fx.Node, name: str, source: str) -> Region:
    """The record and the region from an attention that was read."""
    sizes = _grouped(r, anchor)
    operands = (r.q.node, r.k.node, r.v.node, sizes.k.node, sizes.v.node)
    placed = (*(p for p, _ in r.logits.tempers), *r.logits.keeps, *r.logits.biases)
    for node in (*operands, *(p.recipe.base for p in placed)):
        facts.refuse_changed(node, r.out.node, "reader 4")
    cached = _cached(r)
    own = r.rows == r.columns or cached
    kind = "self" if own else "class" if sizes.queries == 1 else "cross"
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
        added=logits.added and (bool(logits.biases) or not _swallows(anchor, logits.fill)),
        mixed_fills=logits.mixed_fills,
        cached=cached,
        bias=bool(logits.biases),
        dropout=r.dropout,
        width=None if block is None else int(value(block).shape[-1]),
        grid=grid,
        prefix=prefix,
        weights=tuple(tuple(value(n).shape) for n in weights),
        source=source,
        degree="fused" if block is None else "block",
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


def _normaliser(facts: GraphFacts, n: Normaliser, why: Refuse, name: str, source: str) -> Region:
    """The record and the region of a softmax that alone may be exchanged; ``why`` no more."""
    anchor = n.weights.node
    block, output = block_output(facts, n.output.node, n.rows)
    weights = projection_weights(facts, [n.scores.a, n.scores.b, n.values])
    queries, letters = side_of(n.scores, n.queries)
    summed = [value(queries).shape[letters.index(c)] for c in n.scores.summed]
    t, s = (value(anchor).shape[i] for i in n.weights.permutation[-2:])
    if all(value(queries).shape[letters.index(c)] == 1 for c in n.scores.own(n.queries)):
        t = 1  # the weights may have no axis of rows
    heads = n.weights.lead.heads
    same = bool(n.rows) and n.rows == n.columns
    site = AttentionSite(
        name=name,
        kind="self" if same else "class" if t == 1 else "cross",
        heads=heads,
        kv_heads=heads,
        head_dim=math.prod(x for x in summed if isinstance(x, int)),
        value_dim=0,
        query_len=_length(t),
        key_len=_length(s),
        scale=None,
        mask=frozenset({"arbitrary"}),
        swapped=True,
        width=None if block is None else int(value(block).shape[-1]),
        weights=tuple(tuple(value(x).shape) for x in weights),
        source=source,
        degree="logits",
    )
    hint = f"{why.hint}: the softmax alone can be exchanged"
    unread = Decline(why.code, hint=hint, node=why.node.name, condition=why.condition)
    traits = Traits(
        kind=site.kind,
        mask=site.mask,
        escapes=n.escapes[0].name if n.escapes else "",
        unread=unread,
    )
    rank = value(n.output.node).dim()
    lead = Lead(rank - 2, tuple(range(rank - 2)), 1, False)
    return Region(
        site=site,
        traits=traits,
        anchor=anchor,
        q=None,
        k=None,
        v=None,
        out=Operand(n.output.node, tuple(range(rank)), lead),
        logits=Logits(),
        weights=n.weights,
        block_out=block,
        tokens=n.rows,
        parameters=weights,
        output=output,
    )


def _traits(r: Reading, site: AttentionSite, sizes: _Grouped) -> Traits:
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
        mixed_fills=site.mixed_fills,
        swappable=r.softmax is not None,
        cached=site.cached,
        same_len=expression(sizes.queries) == expression(sizes.keys),
        value_dim_differs=sizes.head_dim != sizes.value_dim,
    )


def _cached(r: Reading) -> bool:
    """Whether the keys are those of a cache, followed by the queries' own tokens."""
    if len(r.columns) != 1 or len(r.columns[0].parts) < 2:
        return False
    *before, last = r.columns[0].parts
    return last == r.rows and all("input" in kinds(part) for part in before)


def _swallows(anchor: fx.Node, fill: float | None) -> bool:
    """Whether adding the fill is setting it: nothing smaller can be told from it."""
    return fill is None or fill <= torch.finfo(value(operand(anchor)).dtype).min


def _heads(x: Operand) -> int:
    """The size of an operand's own head axis; 1 where it is shared."""
    if x.lead.split >= 0:
        return x.lead.heads
    at = x.permutation[x.lead.count - 1]
    return 1 if at == SHARED else int(value(x.node).shape[at])


def _length(size: Any) -> int | str:
    """A length as a site shows it: a number, or the name of a symbolic size."""
    return size if isinstance(size, int) else str(size)
