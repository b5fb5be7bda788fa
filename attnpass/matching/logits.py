"""The logits of an attention: scale, kept positions, biases, factors on the queries.

The steps between the product and softmax are folded, in order, into one record.

Soundness: ``softmax(scale q k^T + biases, kept positions)`` with the recorded fill is the softmax
of the chain. Conditions:

1. After a sink was joined, nothing but casts, copies and the subtraction of a maximum follows.
2. A mask or factor is applied to logits whose last two axes are rows and columns, and whose
   leading axes are in the order of the queries'.
3. A number that multiplies masked logits leaves them masked.
4. A factor that is a tensor is the same for all keys of a row, and no mask or bias came before it:
   so it can be applied to the query.
5. A view keeps the heads apart.
6. A mask is not written in place before it is read, nor is what it is computed from before that.

Two masks of a chain have one fill only if both set the logits to the same number (``masks 6``).
Otherwise, and where a bias is added to logits that were set to a finite fill, rows without a kept
key depend on the order of the masks (``mixed_fills``): softmax is then exchanged alone, or stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from attnpass.graph import value
from attnpass.matching.chain import Chain
from attnpass.matching.facts import GraphFacts
from attnpass.matching.layout import Lead
from attnpass.matching.map_axes import same_heads
from attnpass.matching.masks import Keep, Mask, additive, classify
from attnpass.matching.patterns import Sizes, only_masks
from attnpass.matching.recipe import FILL, AboveFill, Again, Lift, Like, Recipe, Scale
from attnpass.matching.refuse import Refuse
from attnpass.matching.steps import (
    Added,
    Clamped,
    MaximumSubtracted,
    Scaled,
    ScoreStep,
    Selected,
    SinkJoined,
    Tempered,
    Unchanged,
    Viewed,
)
from attnpass.torch_internals import expression


@dataclass
class Placed:
    """A mask recipe with the leading axes of the logits ``at`` which it was applied."""

    recipe: Recipe
    lead: Lead
    at: fx.Node


@dataclass
class Logits:
    """Everything between ``q k^T`` and softmax.

    Attributes:
        scale: factor on the product. factors: what is proven of the masks.
        causal: whether only s <= t is kept.
        fill: what masked logits are set to; None for boolean masks. added: it is added instead.
        keeps: kept positions that are not named by ``causal``. biases: added to the logits.
        tempers: tensors that multiply the queries, or divide them (True).
        mixed_fills: not every position that is not kept has this fill and nothing else.
    """

    scale: float = 1.0
    factors: set[str] = field(default_factory=set)
    causal: bool = False
    fill: float | None = None
    added: bool = False
    keeps: list[Placed] = field(default_factory=list)
    biases: list[Placed] = field(default_factory=list)
    tempers: list[tuple[Placed, bool]] = field(default_factory=list)
    mixed_fills: bool = False

    def take(self, mask: Mask, stage: Lead, at: fx.Node) -> None:
        """Add a mask operand that was read."""
        self.factors |= mask.factors
        self.causal |= mask.causal
        if mask.biases:
            self.biased()
        self.mixed_fills |= mask.mixed_fills
        if mask.fill is not None:
            if self.fill is not None:  # masks 6
                once = self.fill == mask.fill == -math.inf
                added = (self.added or mask.added) and not once
                self.mixed_fills |= added or self.fill != mask.fill
            self.fill = mask.fill if self.fill is None else max(self.fill, mask.fill)
            self.added |= mask.added
        self.keeps += [Placed(r, stage, at) for r in mask.keeps]
        self.biases += [Placed(r, stage, at) for r in mask.biases]

    def biased(self) -> None:
        """A bias is added to the logits as they are now (masks 6)."""
        if self.fill is not None and self.fill != -math.inf and not self.added:
            self.mixed_fills = True


def read_mask(facts: GraphFacts, recipe: Recipe, sizes: Sizes, stage: Lead) -> Mask:
    """A mask operand as kept positions, biases and fill."""
    mask, keeps = Mask(), []
    if value(recipe.base).dtype == torch.bool:
        keeps.append(recipe)
    else:
        for part in additive(recipe):
            if isinstance(part, Keep):
                keeps.append(part.recipe)
                mask.fill = part.fill if mask.fill is None else max(part.fill, mask.fill)
                mask.added |= not part.replaces
                mask.mixed_fills |= part.overlaid
            elif only_masks(part.recipe, sizes):
                base, steps = part.recipe.base, part.recipe.steps
                keeps.append(Recipe(base, False, (*steps, AboveFill())))
                mask.mixed_fills |= mask.fill not in (None, -math.inf)
                mask.fill, mask.added = -math.inf, True
            else:
                mask.biases.append(part.recipe)
    classify(mask, keeps, sizes, facts.axes, stage)
    return mask


@dataclass
class _Fold:
    """The steps of one chain on their way into ``out``.

    Attributes:
        facts: of the graph. first: the leading axes of the product. sizes: T and S.
        upright: the product's last two axes are rows and columns, in this order.
        detours: see ``map_axes.detours``.
        stage: the leading axes where the fold is. at: the node there. sunk: a sink was joined.
    """

    facts: GraphFacts
    first: Lead
    sizes: Sizes
    upright: bool
    detours: dict[fx.Node, fx.Node]
    out: Logits
    stage: Lead
    at: fx.Node
    sunk: bool = False

    @property
    def plain(self) -> bool:
        """Whether the logits are upright here and their leading axes in order."""
        return self.upright and self.stage.order == tuple(range(self.stage.count))

    def take(self, step: ScoreStep) -> None:
        """Fold one step."""
        self.sunk |= isinstance(step, SinkJoined)
        if self.sunk and not isinstance(step, (SinkJoined, Unchanged, MaximumSubtracted)):
            raise Refuse("logits 1", "SINK", "logits change after a sink was joined", step.at)
        if isinstance(step, (Added, Selected, Tempered)) and not self.plain:
            raise Refuse("logits 2", "AXIS_UNPROVEN", "a mask on transposed logits", step.at)
        match step:
            case Scaled():
                self._scaled(step)
            case Tempered():
                self._tempered(step)
            case Added():
                self._added(step)
            case Selected():
                self._selected(step)
            case Clamped(_, bound) if self.out.fill is not None and bound >= self.out.fill:
                # every fill is at or below the bound: all of them are the bound now
                self.out.fill, self.out.added, self.out.mixed_fills = bound, False, False
            case Viewed(at) if at not in self.detours:
                self._viewed(at)

    def _scaled(self, step: Scaled) -> None:
        out = self.out
        out.scale *= step.factor
        if out.fill is not None:
            out.fill *= step.factor
            if not out.fill <= FILL:
                raise Refuse("logits 3", "UNKNOWN_SCORE_OP:mul", "a mask scaled away", step.at)
        out.biases = [
            replace(p, recipe=_then(replace(p.recipe, negate=False), Scale(step.factor)))
            for p in out.biases
        ]

    def _tempered(self, step: Tempered) -> None:
        out = self.out
        by_row = step.at not in self.detours and _same_for_all_keys(step.tensor)
        if out.biases or out.fill is not None or not by_row:
            hint = "a [T, S] factor on the logits"
            raise Refuse("logits 4", "UNKNOWN_SCORE_OP:mul", hint, step.at)
        out.tempers.append((self._placed(Recipe(step.tensor)), step.inverse))

    def _added(self, step: Added) -> None:
        self.facts.refuse_written(step.tensor, step.at, "logits 6")
        recipe = self._joined(step.tensor, step.at)
        if not step.negative:
            mask = read_mask(self.facts, recipe, self.sizes, self.stage)
            self.out.take(mask, self.stage, self.at)
            return
        self.out.biased()
        self.out.biases.append(self._placed(_then(recipe, Scale(-1.0))))

    def _selected(self, step: Selected) -> None:
        self.facts.refuse_written(step.condition, step.at, "logits 6")
        mask = Mask(fill=step.fill)
        recipe = replace(self._joined(step.condition, step.at), negate=step.flip)
        classify(mask, [recipe], self.sizes, self.facts.axes, self.stage)
        self.out.take(mask, self.stage, self.at)

    def _viewed(self, at: fx.Node) -> None:
        self.at = at
        self.stage = self.facts.lead(at, range(value(at).dim() - 2))
        if not same_heads(self.stage, self.first):
            raise Refuse("logits 5", "AXIS_UNPROVEN", "a view mixes heads and batch", at)

    def _placed(self, recipe: Recipe) -> Placed:
        return Placed(recipe, self.stage, self.at)

    def _joined(self, tensor: fx.Node, at: fx.Node) -> Recipe:
        """A step's tensor as seen behind the view that joins split token axes again."""
        view = self.detours.get(at)
        if view is None:
            return Recipe(tensor)
        return Recipe(tensor, False, (Lift(value(at).dim()), Like(at), Again(view)))


def read_logits(
    facts: GraphFacts,
    c: Chain,
    lead: Lead,
    sizes: Sizes,
    upright: bool,
    detours: dict[fx.Node, fx.Node],
) -> Logits:
    """The steps of a chain, folded; ``upright``: the product's last axes are rows and columns.

    Raises:
        Refuse: conditions 1 to 6.
    """
    out = Logits(scale=c.scores.factor)
    fold = _Fold(facts, lead, sizes, upright, detours, out, lead, c.scores.node)
    for step in c.steps:
        fold.take(step)
    return out


def _then(recipe: Recipe, step: Scale) -> Recipe:
    return replace(recipe, steps=(*recipe.steps, step))


def _same_for_all_keys(node: fx.Node) -> bool:
    """Whether a tensor has at most one value for all keys of a row."""
    shape: Any = value(node).shape
    return len(shape) == 0 or expression(shape[-1]) == 1
