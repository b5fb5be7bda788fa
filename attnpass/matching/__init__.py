"""Normalised graph -> attention sites and declines. Pure: reads the graph, edits nothing."""

from __future__ import annotations

from attnpass.matching.chain import reached
from attnpass.matching.layout import SHARED, Lead, Operand
from attnpass.matching.logits import Placed
from attnpass.matching.products import Contraction
from attnpass.matching.recipe import (
    ABOVE,
    FILL,
    FIRST_HEAD,
    FirstOf,
    Like,
    Recipe,
    recipe_shape,
    replayed,
)
from attnpass.matching.refuse import Refuse
from attnpass.matching.region import Region
from attnpass.matching.steps import Term
from attnpass.matching.verdicts import Matches, marked, match

__all__ = [
    "ABOVE",
    "Contraction",
    "FILL",
    "FIRST_HEAD",
    "FirstOf",
    "Lead",
    "Like",
    "Matches",
    "Operand",
    "Placed",
    "Recipe",
    "Refuse",
    "Region",
    "SHARED",
    "Term",
    "marked",
    "match",
    "reached",
    "recipe_shape",
    "replayed",
]
