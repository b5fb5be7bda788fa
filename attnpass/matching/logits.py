"""The logits of an attention: scale, kept positions, biases, factors on the queries."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from attnpass.matching.chain import Chain
from attnpass.matching.factors import Axes
from attnpass.matching.layout import Lead, lead_of
from attnpass.matching.map_axes import Maps, same_heads, static_sizes
from attnpass.matching.masks import Mask, additive, classify, constant_mask
from attnpass.matching.recipe import ABOVE, FILL, Like, Recipe
from attnpass.matching.refuse import Refuse
from attnpass.matching.steps import Term
from attnpass.torch_internals import expression as expr


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


class LogitsReader(Maps):
    """Reads what stands between product and softmax; ``written`` are tensors written in place."""

    def __init__(self, axes: dict[fx.Node, Axes], written: set[fx.Node]) -> None:
        super().__init__(axes)
        self.written = written

    def _logits(
        self,
        c: Chain,
        lead: Lead,
        sizes: tuple[Any, Any],
        upright: bool,
        detours: dict[fx.Node, fx.Node],
    ) -> tuple[Logits, Lead]:
        """Fold the terms between the product and softmax; also the leading axes at softmax.

        ``upright``: the product's last two axes are rows and columns, in this order.
        """
        out, stage, at = Logits(scale=c.scores.factor), lead, c.scores.node
        plain = upright and lead.order == tuple(range(lead.count))
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
                    out.take(self._mask(recipe, sizes, stage), stage, at)
            elif term.kind == "select":
                self._refuse_written(term.node, deep=True)
                mask = Mask(fill=term.value)
                recipe = replace(_joined(term, detours.get(term.at)), negate=term.flip)
                classify(mask, [recipe], sizes, self.axes, stage)
                out.take(mask, stage, at)
            elif term.kind == "clamp" and out.fill is not None:
                out.fill, out.added = max(out.fill, term.value), False
            elif term.kind == "view" and term.at not in detours:
                at, shape = term.at, term.at.meta["val"].shape[:-2]
                stage = lead_of(self.axes[term.at][:-2], static_sizes(shape))
                plain = upright and stage.order == tuple(range(stage.count))
                if not same_heads(stage, lead):
                    raise Refuse("AXIS_UNPROVEN", "a view mixes heads and batch", term.at)
        return out, stage

    def _mask(self, recipe: Recipe, sizes: tuple[Any, Any], stage: Lead) -> Mask:
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
        classify(mask, keeps, sizes, self.axes, stage)
        return mask

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


def _joined(term: Term, view: fx.Node | None) -> Recipe:
    """A term's tensor as seen behind the view that joins split token axes again."""
    if view is None:
        return Recipe(term.node)
    return Recipe(term.node, False, (term.at.meta["val"].dim(), Like(term.at), view))


def _row_factor(node: Any) -> bool:
    shape = node.meta["val"].shape
    return len(shape) == 0 or expr(shape[-1]) == 1
