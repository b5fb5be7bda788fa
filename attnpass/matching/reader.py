"""One anchor read into a Region: the operands, the logits' terms, the result, the block output.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, D width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from attnpass.graph import CASTS, COPIES, op_name
from attnpass.matching.chain import Chain, chains
from attnpass.matching.factors import Axes, Axis, kinds, surer
from attnpass.matching.layout import SHARED, Lead, Operand, absorb, lead_of, ungrouped
from attnpass.matching.legality import Traits
from attnpass.matching.logits import Logits, LogitsReader
from attnpass.matching.map_axes import Positions, same_heads, side_of, static_sizes
from attnpass.matching.recipe import Recipe
from attnpass.matching.refuse import Refuse
from attnpass.matching.region import SDPA, Region
from attnpass.matching.steps import mixed_map
from attnpass.site import AttentionSite
from attnpass.torch_internals import expression as expr

PROJECTIONS = frozenset(
    {"linear", "addmm", "conv1d", "conv2d", "conv3d", "convolution", "embedding"}
)

_TO_BLOCK_OUT = (
    CASTS
    | COPIES
    | {
        "view",
        "reshape",
        "_unsafe_view",
        "transpose",
        "permute",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
    }
)


class Reader(LogitsReader):
    """Reads anchors of one graph, given the provenance of its axes and its parameters."""

    def __init__(
        self, axes: dict[fx.Node, Axes], parameters: set[fx.Node], written: set[fx.Node]
    ) -> None:
        super().__init__(axes, written)
        self.parameters = parameters

    def read(self, anchor: fx.Node, name: str, source: str) -> Region:
        """The region around ``anchor``.

        Raises:
            Refuse: it is not attention, or cannot be proven to be.
        """
        self.anchor, self.name, self.source = anchor, name, source
        if op_name(anchor) == SDPA:
            return self._fused()
        first: Refuse | None = None
        for candidate in chains(anchor):
            try:
                return self._eager(candidate)
            except Refuse as no:
                first = first or no
        assert first is not None
        raise first

    def _fused(self) -> Region:
        """From ``scaled_dot_product_attention`` in any call shape."""
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given: dict[str, Any] = dict(zip(names, self.anchor.args, strict=False))
        given |= dict(self.anchor.kwargs)
        q, k, v = given["query"], given["key"], given["value"]
        shape, rank = q.meta["val"].shape, q.meta["val"].dim()
        lead = self._lead(q, range(rank - 2))
        order = (*lead.order, rank - 2, rank - 1)
        scale = given.get("scale")
        if scale is None:
            if not isinstance(shape[-1], int):
                raise Refuse("DYNAMIC_AXIS", "the head dim is symbolic", self.anchor)
            scale = 1 / math.sqrt(shape[-1])
        logits = Logits(scale=float(scale), causal=bool(given.get("is_causal")))
        if logits.causal:
            logits.factors.add("causal")
        if given.get("attn_mask") is not None:
            sizes = (shape[-2], k.meta["val"].shape[-2])
            logits.take(self._mask(Recipe(given["attn_mask"]), sizes, lead), lead, q)
        if logits.fill == -math.inf:
            logits.fill = None  # the fused operator gives 0 where no key is kept
        self._check(self.axes[q][-1], self.axes[k][-1], self.axes[q][-2], self.axes[k][-2])
        operands = [Operand(*absorb(x, order, self.anchor), lead) for x in (q, k, v)]
        return self._finish(
            operands,
            Operand(self.anchor, order, lead),
            logits,
            dropout=float(given.get("dropout_p") or 0.0),
        )

    def _eager(self, c: Chain) -> Region:
        """From a softmax between two products."""
        scores, heads = c.scores, self._query_heads(c.scores)
        detours = self._detours(c)
        side, other, at = self._sides(c, detours, heads)
        q, q_letters = side_of(scores, side)
        k, k_letters = side_of(scores, other)
        t = scores.own(side).replace(heads, "") if heads else scores.own(side)
        s, d = scores.own(other), scores.summed
        together = "".join(x for x in scores.out if x in scores.batch + heads)
        axis = lambda x, letters, c: (  # noqa: E731
            self.axes[x][letters.index(c)] if c in letters else ()
        )
        lead = lead_of(
            [surer(axis(q, q_letters, x), axis(k, k_letters, x)) for x in together],
            static_sizes(q.meta["val"].shape[q_letters.index(x)] for x in together),
        )
        batch = [together[i] for i in lead.order]
        self._check(
            axis(q, q_letters, d),
            axis(k, k_letters, d),
            axis(q, q_letters, t),
            axis(k, k_letters, s),
        )
        operands = [
            _operand(q, q_letters, [*batch, t, d], lead, scores.node),
            _operand(k, k_letters, [*batch, s, d], lead, scores.node),
        ]
        value, out = self._values(c, at, bool(heads))
        if not same_heads(value.lead, lead):
            raise Refuse("AXIS_UNPROVEN", "heads of weights and values differ", self.anchor)
        mixed = any(term.kind in ("turn", "mix") for term in c.terms)
        mixed |= any(mixed_map(n) is not None for n in c.after)
        sizes = (q.meta["val"].shape[q_letters.index(t)], k.meta["val"].shape[k_letters.index(s)])
        if mixed:
            logits, stage = Logits(), lead
        else:
            plain = scores.out == together + t + s
            logits, stage = self._logits(c, lead, sizes, plain, detours)
        return self._finish(
            [*operands, value], out, logits, c, softmax=self._softmax(c, at, lead), mixed=mixed
        )

    def _softmax(self, c: Chain, at: Positions, lead: Lead) -> Operand | None:
        """The softmax node with its layout, None where its heads are not those of the site."""
        rank = c.softmax.meta["val"].dim()
        rows, columns = (at[x] % rank for x in ("rows", "columns"))
        others = [i for i in range(rank) if i not in (rows, columns)]
        stage = self._lead(c.softmax, others)
        order = (*(others[i] for i in stage.order), rows, columns)
        return Operand(c.softmax, order, stage) if same_heads(stage, lead) else None

    def _values(self, c: Chain, at: Positions, shared: bool) -> tuple[Operand, Operand]:
        """Values and result of the second product, which must sum over the softmax axis."""
        product = c.output
        assert product is not None
        last = c.after[-1] if c.after else c.softmax
        side, other = ("a", "b") if product.a is last else ("b", "a")
        if _made_from(side_of(product, other)[0], self.anchor):
            raise Refuse("NOT_ATTENTION:product", "the weights are multiplied by themselves", last)
        _, weights = side_of(product, side)
        v, letters = side_of(product, other)
        rows, own = product.own(side), product.own(other)
        for node in c.after:
            if op_name(node) == "slice":
                self._without_sink(c, node)
            else:
                at = self._moved(node, at)
        heads = rows.replace(weights[at["rows"]], "") if shared else ""
        if heads:
            rows = weights[at["rows"]]
        if weights[at["columns"]] != product.summed or len(own) != 1 or len(rows) != 1:
            raise Refuse(
                "AXIS_NOT_TOKEN", "the weights are not summed over the softmax axis", product.node
            )
        together = "".join(x for x in weights if x in product.batch + heads)
        lead = self._lead(last, [weights.index(x) for x in together])
        batch = [together[i] for i in lead.order]
        order = tuple(product.out.index(x) for x in (*batch, rows, own))
        value = _operand(v, letters, [*batch, product.summed, own], lead, product.node)
        return value, Operand(product.node, order, lead)

    def _without_sink(self, c: Chain, node: fx.Node) -> None:
        """Refuse a slice of the weights that does not drop the sink and nothing else."""
        joined = [t.at for t in c.terms if t.kind == "sink"]
        if len(joined) != 1:
            raise Refuse("SINK", "more than one sink", node)
        parts: Any = joined[0].args[0]
        keys = [p for p in parts if p.meta["val"].shape[-1] != 1]
        start = 0 if parts[0] is keys[0] else 1
        size = keys[0].meta["val"].shape[-1]
        begin = node.args[2] if len(node.args) > 2 else 0
        step = node.args[4] if len(node.args) > 4 else 1
        if begin != start or step != 1 or node.meta["val"].shape[-1] != size:
            raise Refuse("SINK", "the sink's column is not dropped before the values", node)

    def _check(self, q_sum: Axis, k_sum: Axis, rows: Axis, columns: Axis) -> None:
        """Features are contracted and tokens compared; anything else is another thing."""
        if "token" in kinds(q_sum) | kinds(k_sum):
            raise Refuse("NOT_ATTENTION:channel", "the product runs over tokens", self.anchor)
        if "feature" in kinds(rows) | kinds(columns):
            raise Refuse("AXIS_NOT_TOKEN", "softmax compares features, not tokens", self.anchor)
        self.rows, self.columns = rows, columns

    def _finish(
        self,
        operands: list[Operand],
        out: Operand,
        logits: Logits,
        c: Chain | None = None,
        *,
        dropout: float = 0.0,
        softmax: Operand | None = None,
        mixed: bool = False,
    ) -> Region:
        """The record and the region from what was read."""
        q, k, v = operands
        escapes = c.escapes if c else []
        terms = {term.kind for term in c.terms} if c else set()
        softcap, sink = "softcap" in terms, "sink" in terms
        dropout = c.dropout if c else dropout
        for operand in operands:
            self._refuse_written(operand.node)
        for temper, _ in logits.tempers:
            self._refuse_written(temper.recipe.base)
        (k, group), (v, v_group) = ungrouped(k), ungrouped(v)
        if group != v_group:
            (k, v), group = operands[1:], 1
        if k.lead.paired and _heads(k) != _heads(v):
            raise Refuse("AXIS_UNPROVEN", "keys and values have different heads", self.anchor)
        own = _heads(k) if k.lead.paired else q.lead.heads // group
        dims = [x.node.meta["val"].shape[x.permutation[-1]] for x in (q, v)]
        if not all(isinstance(x, int) for x in dims):
            raise Refuse("DYNAMIC_AXIS", "the head dim is symbolic", self.anchor)
        t, s = (x.node.meta["val"].shape[x.permutation[-2]] for x in (q, k))
        if expr(s) != expr(v.node.meta["val"].shape[v.permutation[-2]]):
            raise Refuse("AXIS_UNPROVEN", "keys and values differ in length", self.anchor)
        kind = "self" if self.rows == self.columns else "class" if t == 1 else "cross"
        block, output = self._block_out(out)
        weights = self._weights([q.node, k.node, v.node])
        grid, prefix = _grid(self.rows)
        site = AttentionSite(
            name=self.name,
            kind=kind,
            heads=q.lead.heads,
            kv_heads=own,
            head_dim=dims[0],
            value_dim=dims[1],
            query_len=_length(t),
            key_len=_length(s),
            scale=None if logits.tempers else logits.scale,
            mask=frozenset(logits.factors),
            fill=logits.fill,
            swapped=softcap or mixed or bool(escapes),
            mixed=mixed,
            sink=sink,
            added=logits.added and not self._swallows(logits.fill),
            bias=bool(logits.biases),
            dropout=dropout,
            width=None if block is None else int(block.meta["val"].shape[-1]),
            grid=grid,
            prefix=prefix,
            weights=tuple(tuple(n.meta["val"].shape) for n in weights),
            source=self.source,
        )
        traits = Traits(
            kind=kind,
            mask=site.mask,
            bias=site.bias,
            dropout=dropout,
            escapes=escapes[0].name if escapes else "",
            softcap=softcap,
            mixed=mixed,
            sink=sink,
            swappable=softmax is not None,
            cached=kind == "cross" and any(f.parts and f.kind == "input" for f in self.columns),
            same_len=expr(t) == expr(s),
            value_dim_differs=dims[0] != dims[1],
        )
        return Region(
            site,
            traits,
            self.anchor,
            q,
            k,
            v,
            out,
            logits,
            softmax,
            block,
            self.rows,
            None,
            weights,
            output,
        )

    def _swallows(self, fill: float | None) -> bool:
        """Whether adding the fill is setting it: nothing smaller can be told from it."""
        dtype = self.anchor.args[0].meta["val"].dtype  # type: ignore[union-attr]
        return fill is None or fill <= torch.finfo(dtype).min

    def _block_out(self, out: Operand) -> tuple[fx.Node | None, tuple[fx.Node, ...]]:
        """The projected output ``[B, T, D]`` and its projection's parameters, else None."""
        node, found = out.node, None
        projection: tuple[fx.Node, ...] = ()
        while len(node.users) == 1:
            before, node = node, next(iter(node.users))
            name = op_name(node)
            if name in ("linear", "addmm") and not projection:
                others = [n for n in node.all_input_nodes if n is not before]
                projection = self._weights(others) or tuple(others)
            elif name not in _TO_BLOCK_OUT:
                break
            axes = self.axes.get(node, ())
            if (
                projection
                and len(axes) == 3
                and axes[1] == self.rows
                and kinds(axes[2]) == {"feature"}
            ):
                found = node
        if found is None or not isinstance(found.meta["val"].shape[-1], int):
            return None, ()
        return found, tuple(n for n in projection if n in self.parameters)

    def _weights(self, roots: list[fx.Node]) -> tuple[fx.Node, ...]:
        """Parameters of the projections that make q, k and v, in order of first use."""
        found: dict[fx.Node, None] = {}
        seen: set[fx.Node] = set()
        stack = list(reversed(roots))
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in self.parameters:
                found[node] = None
            elif op_name(node) in PROJECTIONS:
                at = 1 if op_name(node) in ("addmm", "embedding") else 0
                weights = [n for n in node.all_input_nodes if n is not node.args[at]]
                found.update(dict.fromkeys(n for n in weights if n in self.parameters))
                stack.extend(n for n in reversed(weights) if n not in self.parameters)
            else:
                stack.extend(reversed(node.all_input_nodes))
        return tuple(found)


def _operand(node: fx.Node, letters: str, want: list[str], lead: Lead, until: fx.Node) -> Operand:
    """An operand of the product ``until``, with its letters in the order ``want``."""
    missing = set(want) - set(letters)
    head = want[lead.count - 1] if lead.paired and lead.split < 0 else ""
    if set(letters) - set(want) or missing - {head}:
        raise Refuse("AXIS_UNPROVEN", "an operand broadcasts over a leading axis", node)
    at = tuple(SHARED if x in missing else letters.index(x) for x in want)
    return Operand(*absorb(node, at, until), lead)


def _heads(operand: Operand) -> int:
    if operand.lead.split >= 0:
        return operand.lead.heads
    at = operand.permutation[operand.lead.count - 1]
    return 1 if at == SHARED else int(operand.node.meta["val"].shape[at])


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
    return size if isinstance(size, int) else str(size)


def _grid(tokens: Axis) -> tuple[tuple[int, int] | None, int]:
    """Rows and columns of patch tokens and the tokens before them, proven by a convolution."""
    if len(tokens) == 1 and tokens[0].parts:
        *before, last = tokens[0].parts
        grid, _ = _grid(last)
        sizes = [
            math.prod(f.size for f in part) if all(isinstance(f.size, int) for f in part) else None
            for part in before
        ]
        if grid is None or None in sizes:
            return None, 0
        return grid, sum(x for x in sizes if x is not None)
    if len(tokens) == 2 and all(f.kind == "token" and isinstance(f.size, int) for f in tokens):
        return (tokens[0].size, tokens[1].size), 0
    return None, 0
