"""One anchor read into a region: the public site and the nodes that a rewrite needs.

Soundness: the region's keys and values have their own heads, and its sizes are those of every call
that the guards allow. Conditions, beside those of ``reading``:

1. The head dims of queries and values are known numbers.
2. Keys and values have the same heads.
3. Keys and values have the same length.
4. No operand and no factor on the queries is written in place.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from attnpass.graph import op_name, operand, value
from attnpass.matching.chain import chains
from attnpass.matching.facts import GraphFacts
from attnpass.matching.layout import SHARED, Operand, ungrouped
from attnpass.matching.legality import Traits
from attnpass.matching.reading import Reading, eager_reading, fused_reading
from attnpass.matching.refuse import Refuse
from attnpass.matching.region import SDPA, Region
from attnpass.matching.surroundings import block_output, patch_grid, projection_weights
from attnpass.site import AttentionSite
from attnpass.torch_internals import expression


def read_region(facts: GraphFacts, anchor: fx.Node, name: str, source: str) -> Region:
    """The region around ``anchor``, its site named ``name`` and made at ``source``.

    Raises:
        Refuse: it is not attention, or cannot be proven to be.
    """
    if op_name(anchor) == SDPA:
        return _region(facts, fused_reading(facts, anchor), anchor, name, source)
    first: Refuse | None = None
    for candidate in chains(anchor):
        try:
            return _region(facts, eager_reading(facts, candidate), anchor, name, source)
        except Refuse as no:
            first = first or no
    assert first is not None
    raise first


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
    if expression(s) != expression(values):
        hint = "keys and values differ in length"
        raise Refuse("reader 3", "AXIS_UNPROVEN", hint, anchor)
    return _Grouped(k, v, own, head_dim, value_dim, t, s)


def _region(facts: GraphFacts, r: Reading, anchor: fx.Node, name: str, source: str) -> Region:
    """The record and the region from an attention that was read."""
    for node in (r.q.node, r.k.node, r.v.node, *(p.recipe.base for p, _ in r.logits.tempers)):
        facts.refuse_written(node, "reader 4")
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
        added=logits.added and (bool(logits.biases) or not _swallows(anchor, logits.fill)),
        mixed_fills=logits.mixed_fills,
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
        cached=site.kind == "cross" and any(f.parts and f.kind == "input" for f in r.columns),
        same_len=expression(sizes.queries) == expression(sizes.keys),
        value_dim_differs=sizes.head_dim != sizes.value_dim,
    )


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
