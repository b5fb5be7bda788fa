"""Normalised graph -> attention sites and declines. Pure: reads the graph, edits nothing.

Each prover states in a Soundness section its claim and the numbered conditions of the claim; a
``Refuse`` names the condition that is not met. Imports ``graph`` and the records of ``site``;
knows no form, no plan and no kernel.
"""

from __future__ import annotations

from attnpass.matching.chain import reached
from attnpass.matching.handed import hand, handing, outgoing, same_axes
from attnpass.matching.layout import SHARED, Lead, Operand
from attnpass.matching.logits import Placed
from attnpass.matching.matched import MatchedGraph, Outline
from attnpass.matching.products import Contraction
from attnpass.matching.recipe import FILL, FirstOf, Recipe, recipe_shape, replay
from attnpass.matching.refuse import Refuse
from attnpass.matching.region import Region
from attnpass.matching.steps import Added, ScoreStep, Tempered
from attnpass.matching.verdicts import marked

__all__ = [
    "FILL",
    "SHARED",
    "Added",
    "Contraction",
    "FirstOf",
    "Lead",
    "MatchedGraph",
    "Operand",
    "Outline",
    "Placed",
    "Recipe",
    "Refuse",
    "Region",
    "ScoreStep",
    "Tempered",
    "hand",
    "handing",
    "marked",
    "outgoing",
    "reached",
    "recipe_shape",
    "replay",
    "same_axes",
]
