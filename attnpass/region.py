"""One anchor read into a Region: the operands, the logits' terms, the result, the block output.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, D width.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from attnpass.axes import Axes, Axis, expr, kinds, op_name, surer
from attnpass.chain import CASTS, COPIES, TRANSPOSES, VIEWS, Chain, Refuse, Term, chains, mixed_map
from attnpass.contraction import Contraction, contraction
from attnpass.layout import SHARED, Lead, Operand, absorb, lead_of, permuted, ungrouped
from attnpass.legality import Traits
from attnpass.masks import Mask, additive, classify, constant_mask
from attnpass.recipe import ABOVE, FILL, Like, Recipe
from attnpass.site import AttentionSite

SDPA = "scaled_dot_product_attention"
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


Positions = dict[str, int]
"""Where axes of a map are, counted from the end."""


@dataclass
class Placed:
    """A mask recipe with the leading axes of the logits ``at`` which it was applied."""

    recipe: Recipe
    lead: Lead
    at: fx.Node


@dataclass
class Logits:
    """Everything between ``q k^T`` and softmax."""

    scale: float = 1.0
    factors: set[str] = field(default_factory=set)
    causal: bool = False
    fill: float | None = None
    added: bool = False
    keeps: list[Placed] = field(default_factory=list)
    biases: list[Placed] = field(default_factory=list)
    tempers: list[tuple[Placed, bool]] = field(default_factory=list)

    def take(self, mask: Mask, stage: Lead, at: fx.Node) -> None:
        """Add what a mask operand was found to be."""
        self.factors |= mask.factors
        self.causal |= mask.causal
        if mask.fill is not None:
            self.fill = mask.fill if self.fill is None else max(self.fill, mask.fill)
            self.added |= mask.added
        self.keeps += [Placed(r, stage, at) for r in mask.keeps]
        self.biases += [Placed(r, stage, at) for r in mask.biases]


@dataclass
class Region:
    """The nodes a rewrite needs. Internal: never serialised, never shown.

    Attributes:
        site: the public record. traits: what decides its legality. anchor: the softmax node.
        q, k, v: the operands, before any grouping was repeated.
        out: the node whose value is replaced, with its layout.
        logits: scale, kept positions, biases, factors on q.
        weights: the softmax node with its layout, where it stands alone.
        block_out: output of the projection ``[B, T, D]``, before residual and scaling.
        tokens: provenance of the query axis.
        previous: the region whose block output skipat reuses.
        parameters: placeholders of the projections that feed the site.
    """

    site: AttentionSite
    traits: Traits
    anchor: fx.Node
    q: Operand
    k: Operand
    v: Operand
    out: Operand
    logits: Logits
    weights: Operand | None = None
    block_out: fx.Node | None = None
    tokens: Axis = ()
    previous: Region | None = None
    parameters: tuple[fx.Node, ...] = ()


class Reader:
    """Reads anchors of one graph, given the provenance of its axes and its parameters."""

    def __init__(
        self, axes: dict[fx.Node, Axes], parameters: set[fx.Node], written: set[fx.Node]
    ) -> None:
        self.axes, self.parameters, self.written = axes, parameters, written

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
            logits.take(self._mask(Recipe(given["attn_mask"]), sizes), lead, q)
        if logits.fill == -math.inf:
            logits.fill = None  # the fused operator gives 0 where no key is kept
        self._check(self.axes[q][-1], self.axes[k][-1], self.axes[q][-2], self.axes[k][-2])
        operands = [Operand(*absorb(x, order), lead) for x in (q, k, v)]
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
        q, q_letters = _side(scores, side)
        k, k_letters = _side(scores, other)
        t = scores.own(side).replace(heads, "") if heads else scores.own(side)
        s, d = scores.own(other), scores.summed
        together = "".join(x for x in scores.out if x in scores.batch + heads)
        axis = lambda x, letters, c: (  # noqa: E731
            self.axes[x][letters.index(c)] if c in letters else ()
        )
        lead = lead_of(
            [surer(axis(q, q_letters, x), axis(k, k_letters, x)) for x in together],
            _static(q.meta["val"].shape[q_letters.index(x)] for x in together),
        )
        batch = [together[i] for i in lead.order]
        self._check(
            axis(q, q_letters, d),
            axis(k, k_letters, d),
            axis(q, q_letters, t),
            axis(k, k_letters, s),
        )
        operands = [
            _operand(q, q_letters, [*batch, t, d], lead),
            _operand(k, k_letters, [*batch, s, d], lead),
        ]
        value, out = self._values(c, at, bool(heads))
        if not _same_heads(value.lead, lead):
            raise Refuse("AXIS_UNPROVEN", "heads of weights and values differ", self.anchor)
        mixed = any(term.kind in ("turn", "mix") for term in c.terms)
        mixed |= any(mixed_map(n) is not None for n in c.after)
        sizes = (q.meta["val"].shape[q_letters.index(t)], k.meta["val"].shape[k_letters.index(s)])
        if mixed:
            logits, stage = Logits(), lead
        else:
            turned = scores.out.index(t) > scores.out.index(s)
            logits, stage = self._logits(c, lead, sizes, turned, detours)
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
        return Operand(c.softmax, order, stage) if _same_heads(stage, lead) else None

    def _detours(self, c: Chain) -> dict[fx.Node, fx.Node]:
        """Steps on a map viewed with split token axes, to the view that joins them again."""
        out: dict[fx.Node, fx.Node] = {}
        first: fx.Node | None = None
        inside: list[fx.Node] = []
        for term in c.terms:
            if first is not None:
                inside.append(term.at)
                if term.kind == "view" and self._same_tokens(first, term.at):
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
            node, letters = _side(scores, side)
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

    def _values(self, c: Chain, at: Positions, shared: bool) -> tuple[Operand, Operand]:
        """Values and result of the second product, which must sum over the softmax axis."""
        product = c.output
        assert product is not None
        last = c.after[-1] if c.after else c.softmax
        side, other = ("a", "b") if product.a is last else ("b", "a")
        if _made_from(_side(product, other)[0], self.anchor):
            raise Refuse("NOT_ATTENTION:product", "the weights are multiplied by themselves", last)
        _, weights = _side(product, side)
        v, letters = _side(product, other)
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
        value = _operand(v, letters, [*batch, product.summed, own], lead)
        return value, Operand(product.node, order, lead)

    def _without_sink(self, c: Chain, node: fx.Node) -> None:
        """Refuse a slice of the weights that does not drop the sink and nothing else."""
        joined = next(t.at for t in c.terms if t.kind == "sink")
        parts: Any = joined.args[0]
        keys = [p for p in parts if p.meta["val"].shape[-1] != 1]
        start = 0 if parts[0] is keys[0] else 1
        size = keys[0].meta["val"].shape[-1]
        begin = node.args[2] if len(node.args) > 2 else 0
        step = node.args[4] if len(node.args) > 4 else 1
        if begin != start or step != 1 or node.meta["val"].shape[-1] != size:
            raise Refuse("SINK", "the sink's column is not dropped before the values", node)

    def _logits(
        self,
        c: Chain,
        lead: Lead,
        sizes: tuple[Any, Any],
        turned: bool,
        detours: dict[fx.Node, fx.Node],
    ) -> tuple[Logits, Lead]:
        """Fold the terms between the product and softmax; also the leading axes at softmax."""
        out, stage, at = Logits(scale=c.scores.factor), lead, c.scores.node
        plain = not turned and lead.order == tuple(range(lead.count))
        sunk = False
        for term in c.terms:
            sunk |= term.kind == "sink"
            if sunk and term.kind not in ("sink", "same", "maximum"):
                raise Refuse("SINK", "logits change after a sink was joined", term.at)
            if term.kind in ("add", "select", "temper") and not plain:
                raise Refuse("AXIS_UNPROVEN", "a mask on transposed logits", term.at)
            if term.kind == "scale":
                out.scale *= term.value
                if out.fill is not None:
                    out.fill *= term.value
                    if not out.fill <= FILL:
                        raise Refuse("UNKNOWN_SCORE_OP:mul", "a mask scaled away", term.at)
                out.biases = [
                    Placed(
                        Recipe(p.recipe.base, False, (*p.recipe.steps, term.value)), p.lead, p.at
                    )
                    for p in out.biases
                ]
            elif term.kind == "temper":
                tempered = term.at not in detours and _row_factor(term.node)
                if out.biases or out.fill is not None or not tempered:
                    raise Refuse("UNKNOWN_SCORE_OP:mul", "a [T, S] factor on the logits", term.at)
                out.tempers.append((Placed(Recipe(term.node), stage, at), term.flip))
            elif term.kind == "add":
                recipe = _joined(term, detours.get(term.at))
                if term.flip:
                    out.biases.append(
                        Placed(replace(recipe, steps=(*recipe.steps, -1.0)), stage, at)
                    )
                    self._refuse_written(recipe.base, deep=True)
                else:
                    out.take(self._mask(recipe, sizes), stage, at)
            elif term.kind == "select":
                self._refuse_written(term.node, deep=True)
                mask = Mask(fill=term.value)
                recipe = replace(_joined(term, detours.get(term.at)), negate=term.flip)
                classify(mask, [recipe], sizes, self.axes)
                out.take(mask, stage, at)
            elif term.kind == "clamp" and out.fill is not None:
                out.fill, out.added = max(out.fill, term.value), False
            elif term.kind == "view" and term.at not in detours:
                at, shape = term.at, term.at.meta["val"].shape[:-2]
                stage = lead_of(self.axes[term.at][:-2], _static(shape))
                plain = stage.order == tuple(range(stage.count))
                if not _same_heads(stage, lead):
                    raise Refuse("AXIS_UNPROVEN", "a view mixes heads and batch", term.at)
        return out, stage

    def _mask(self, recipe: Recipe, sizes: tuple[Any, Any]) -> Mask:
        """A mask operand as kept positions, biases and fill."""
        self._refuse_written(recipe.base, deep=True)
        mask, keeps = Mask(), []
        if recipe.base.meta["val"].dtype == torch.bool:
            keeps.append(recipe)
        else:
            for kind, part, fill in additive(recipe):
                if kind == "keep":
                    keeps.append(part)
                    mask.fill = fill if mask.fill is None else max(fill, mask.fill)
                    mask.added = True
                elif constant_mask(part, sizes):
                    keeps.append(Recipe(part.base, False, (*part.steps, ABOVE)))
                    mask.fill, mask.added = -math.inf, True
                else:
                    mask.biases.append(part)
        classify(mask, keeps, sizes, self.axes)
        return mask

    def _check(self, q_sum: Axis, k_sum: Axis, rows: Axis, columns: Axis) -> None:
        """Features are contracted and tokens compared; anything else is another thing."""
        if "token" in kinds(q_sum) | kinds(k_sum):
            raise Refuse("NOT_ATTENTION:channel", "the product runs over tokens", self.anchor)
        if "feature" in kinds(rows) | kinds(columns):
            raise Refuse("AXIS_NOT_TOKEN", "softmax compares features, not tokens", self.anchor)
        self.rows, self.columns = rows, columns

    def _lead(self, node: fx.Node, at: Iterable[int]) -> Lead:
        at = list(at)
        shape = node.meta["val"].shape
        return lead_of([self.axes[node][i] for i in at], _static([shape[i] for i in at]))

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
        block = self._block_out(out)
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
        )

    def _swallows(self, fill: float | None) -> bool:
        """Whether adding the fill is setting it: nothing smaller can be told from it."""
        dtype = self.anchor.args[0].meta["val"].dtype  # type: ignore[union-attr]
        return fill is None or fill <= torch.finfo(dtype).min

    def _refuse_written(self, node: fx.Node, *, deep: bool = False) -> None:
        """Refuse what is written in place; ``deep``: also what it is computed from."""
        seen: set[fx.Node] = set()
        stack = [node] if self.written else []
        while stack:
            node = stack.pop()
            if node in self.written:
                raise Refuse("MUTATED_ALIAS", "an operand is written in place", node)
            if deep and node not in seen:
                seen.add(node)
                stack.extend(node.all_input_nodes)

    def _block_out(self, out: Operand) -> fx.Node | None:
        """The projected output ``[B, T, D]``, token axis in the middle, else None."""
        node, projected = out.node, False
        found = None
        while len(node.users) == 1:
            node = next(iter(node.users))
            name = op_name(node)
            if name in ("linear", "addmm") and not projected:
                projected = True
            elif name not in _TO_BLOCK_OUT:
                break
            axes = self.axes.get(node, ())
            if (
                projected
                and len(axes) == 3
                and axes[1] == self.rows
                and kinds(axes[2]) == {"feature"}
            ):
                found = node
        return (
            found if found is not None and isinstance(found.meta["val"].shape[-1], int) else None
        )

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
                found.update(
                    dict.fromkeys(n for n in node.all_input_nodes if n in self.parameters)
                )
            else:
                stack.extend(reversed(node.all_input_nodes))
        return tuple(found)


def _side(product: Any, side: str) -> tuple[fx.Node, str]:
    return (product.a, product.a_letters) if side == "a" else (product.b, product.b_letters)


def _operand(node: fx.Node, letters: str, want: list[str], lead: Lead) -> Operand:
    missing = set(want) - set(letters)
    head = want[lead.count - 1] if lead.paired and lead.split < 0 else ""
    if set(letters) - set(want) or missing - {head}:
        raise Refuse("AXIS_UNPROVEN", "an operand broadcasts over a leading axis", node)
    at = tuple(SHARED if x in missing else letters.index(x) for x in want)
    return Operand(*absorb(node, at), lead)


def _same_heads(a: Lead, b: Lead) -> bool:
    """Whether two stages have the same heads; at equal rank, in the same place."""
    return a == b if a.count == b.count else a.heads == b.heads


def _heads(operand: Operand) -> int:
    if operand.lead.split >= 0:
        return operand.lead.heads
    at = operand.permutation[operand.lead.count - 1]
    return 1 if at == SHARED else int(operand.node.meta["val"].shape[at])


def _static(sizes: Iterable[Any]) -> list[int | None]:
    return [x if isinstance(x, int) else None for x in sizes]


def _joined(term: Term, view: fx.Node | None) -> Recipe:
    """A term's tensor as seen behind the view that joins split token axes again."""
    if view is None:
        return Recipe(term.node)
    return Recipe(term.node, False, (term.at.meta["val"].dim(), Like(term.at), view))


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


def _row_factor(node: Any) -> bool:
    shape = node.meta["val"].shape
    return len(shape) == 0 or expr(shape[-1]) == 1


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
