"""The records that all rooms share: an attention site, or the reason why there is none.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

FORMS = ("softmax", "sigmoid", "relu", "hydra", "skipat")
"""The names of all forms, in the order in which they are shown."""

ALLOW = ("other_weights", "drop_dropout")
"""Deviations that a user may accept: the model returns other attention weights; attention dropout
is dropped."""


@dataclass(frozen=True)
class Decline:
    """The reason why a node is not rewritten: a stable code, its place, and a cure.

    Attributes:
        code: one of the stable decline codes, e.g. ``MASK_ARBITRARY``.
        path: module path of the node, ``""`` at the top of the model.
        source: ``file:line`` of the user's code, ``""`` where unknown.
        hint: one line that names the obstacle and the cure.
        node: the graph node that decided.
        condition: the prover's condition that is not met (``chain 3``): see its Soundness section.
    """

    code: str
    path: str = ""
    source: str = ""
    hint: str = ""
    node: str = ""
    condition: str = ""

    def __str__(self) -> str:
        return f"{self.code}: {self.hint}" if self.hint else self.code

    def as_dict(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class AttentionSite:
    """One softmax attention of a model, as proven from its graph.

    Attributes:
        name: module path; ``path#2`` for the second attention in one module.
        kind: ``self``, ``cross`` or ``class`` (one query from the key tokens).
        degree: what is proven: ``logits`` (a softmax of products that is summed with values: it
            alone can be exchanged; heads, sizes and masks are shown as far as they are known),
            ``fused`` (queries, keys, values, scale, biases and masks) or ``block`` (that, and the
            output of the attention's block).
        heads: H, query heads.
        kv_heads: G, key/value heads; G < H is grouped-query attention.
        head_dim: d, features per head of queries and keys.
        value_dim: features per head of values.
        query_len: T, a number or the name of a symbolic size.
        key_len: S, likewise.
        scale: factor on the logits; ``None`` where it is a tensor (then folded into q).
        mask: proven factors of the mask: ``causal, padding, window, packed, arbitrary``.
        fill: what masked logits are set to; ``None`` for boolean masks of a fused kernel.
        added: the fill is added to the logits instead (a float mask).
        bias: whether a float bias is added to the logits.
        dropout: drop probability on the attention weights, 0.0 when not training.
        swapped: only the softmax node can be exchanged (soft cap, talking heads, weights read
            elsewhere).
        mixed: heads are combined before or after softmax (talking heads), or the map is turned.
        sink: a column of the logits belongs to no key.
        mixed_fills: masked logits are not all the same number, so that rows without a kept key
            depend on the order of the masks.
        cached: the keys are those of a growing cache, followed by the queries' own tokens.
        width: features of the block output (after the output projection), ``None`` if not found.
        grid: rows and columns of patch tokens, ``None`` where the tokens are a sequence.
        prefix: tokens before the patch tokens (class, registers).
        weights: shapes of the projection parameters that feed the site.
        legal: per form ``None`` (legal) or the Decline.
        source: ``file:line`` of the user's code.
    """

    name: str
    kind: str
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    query_len: int | str
    key_len: int | str
    scale: float | None
    mask: frozenset[str] = frozenset()
    fill: float | None = None
    added: bool = False
    bias: bool = False
    dropout: float = 0.0
    swapped: bool = False
    mixed: bool = False
    sink: bool = False
    mixed_fills: bool = False
    cached: bool = False
    width: int | None = None
    grid: tuple[int, int] | None = None
    prefix: int = 0
    weights: tuple[tuple[int, ...], ...] = ()
    legal: Mapping[str, Decline | None] = field(default_factory=lambda: MappingProxyType({}))
    source: str = ""
    degree: str = "fused"

    def fits(self) -> dict[str, Any]:
        """The fields by which a plan recognises this site again, as plain JSON types."""
        return {
            "kind": self.kind,
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "weights": [list(shape) for shape in self.weights],
        }

    def as_dict(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        out = {k: v for k, v in self.__dict__.items() if k != "legal"}
        out["mask"] = sorted(self.mask)
        out["grid"] = list(self.grid) if self.grid else None
        out["weights"] = [list(shape) for shape in self.weights]
        out["legal"] = {f: d.as_dict() if d else None for f, d in self.legal.items()}
        return out
