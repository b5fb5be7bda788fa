"""The record of one attention: the public site, and the nodes that a rewrite needs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from attnpass.matching.factors import Axis
from attnpass.matching.layout import Operand
from attnpass.matching.legality import Traits
from attnpass.matching.logits import Logits
from attnpass.site import AttentionSite

SDPA = "scaled_dot_product_attention"


@dataclass(frozen=True)
class Region:
    """The nodes a rewrite needs. Internal: never serialised, never shown.

    Attributes:
        site: the public record. traits: what decides its legality. anchor: the softmax node.
        q, k, v: the operands, before any grouping was repeated; None of a site of degree
            ``logits``.
        out: the product of weights and values, the node whose value is replaced, with its layout.
        logits: scale, kept positions, biases, factors on q.
        weights: the softmax node with its layout, where it stands alone.
        block_out: output of the projection ``[B, T, D]``, before residual and scaling.
        tokens: provenance of the query axis.
        previous: the region whose block output skipat reuses.
        parameters: placeholders of the projections that feed the site.
        output: placeholders of the output projection, up to ``block_out``.
    """

    site: AttentionSite
    traits: Traits
    anchor: fx.Node
    q: Operand | None
    k: Operand | None
    v: Operand | None
    out: Operand
    logits: Logits
    weights: Operand | None = None
    block_out: fx.Node | None = None
    tokens: Axis = ()
    previous: Region | None = None
    parameters: tuple[fx.Node, ...] = ()
    output: tuple[fx.Node, ...] = ()

    @property
    def operands(self) -> tuple[Operand, Operand, Operand]:
        """Queries, keys and values, of a site whose degree is more than ``logits``."""
        assert self.q is not None and self.k is not None and self.v is not None
        return self.q, self.k, self.v
