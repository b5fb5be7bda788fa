"""Which form is legal at which site: one table of rules over one record; None means yes.

The table follows the mathematics of the forms: a form that cannot express what a site does is
declined with a reason that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from attnpass.site import FORMS, Decline

KEY_MASKS = frozenset({"causal", "padding"})
"""The mask factors that a form without a [T, S] map can still honour."""


@dataclass(frozen=True)
class Traits:
    """What decides legality at one site.

    Attributes:
        kind: ``self``, ``cross`` or ``class``.
        mask: proven mask factors.
        bias: a float bias is added to the logits.
        dropout: drop probability on the weights while training, else 0.0.
        escapes: name of a node that reads the attention weights elsewhere, else ``""``.
        softcap: the logits are capped with tanh.
        mixed: heads are combined before or after softmax.
        sink: a column of the logits belongs to no key.
        mixed_fills: masked logits are not all the same number.
        swappable: the softmax node alone can be exchanged.
        cached: keys and values come from a growing cache.
        same_len: T and S are provably equal.
        value_dim_differs: dv != d.
        previous: a source for skipat exists: same width and length, earlier in this graph.
        unread: why queries, keys, values or masks are not known (degree ``logits``), else None.
    """

    kind: str = "self"
    mask: frozenset[str] = frozenset()
    bias: bool = False
    dropout: float = 0.0
    escapes: str = ""
    softcap: bool = False
    mixed: bool = False
    sink: bool = False
    mixed_fills: bool = False
    swappable: bool = True
    cached: bool = False
    same_len: bool = True
    value_dim_differs: bool = False
    previous: bool = False
    unread: Decline | None = None


SWAPPED = ("sigmoid", "relu")
"""Forms that can take the place of the softmax node alone."""

Rule = tuple[Collection[str], str, Callable[[Traits], bool], str]
"""(forms, code, when it declines, hint)"""

_CHEAP = ("sigmoid", "relu", "hydra", "skipat")

RULES: tuple[Rule, ...] = (
    (
        ("hydra",),
        "BIAS_NOT_SUPPORTED",
        lambda t: t.bias,
        "hydra has no logits to add a bias to; choose sigmoid or relu",
    ),
    (
        ("hydra", "skipat"),
        "MASK_ARBITRARY",
        lambda t: bool(t.mask - KEY_MASKS),
        "only causal and key-padding masks can be honoured without a [T, S] map",
    ),
    (
        ("hydra",),
        "MASK_ARBITRARY",
        lambda t: "causal" in t.mask and not t.same_len,
        "causal hydra is a running sum and needs as many queries as keys",
    ),
    (
        ("hydra",),
        "SOFTCAP",
        lambda t: t.softcap,
        "the tanh cap on the logits cannot be expressed",
    ),
    (
        ("hydra", "skipat"),
        "TALKING_HEADS",
        lambda t: t.mixed,
        "heads are combined on the map, which this form does not have",
    ),
    (
        ("sigmoid", "relu"),
        "SINK",
        lambda t: t.sink and (t.softcap or t.mixed or bool(t.escapes)),
        "the softmax node alone would be exchanged, and its sink counts as a key",
    ),
    (
        ("hydra",),
        "SINK",
        lambda t: t.sink,
        "a sink takes part in softmax's sum, which hydra does not have",
    ),
    (
        ("softmax", "sigmoid", "relu"),
        "AXIS_UNPROVEN",
        lambda t: (t.softcap or t.mixed or bool(t.escapes)) and not t.swappable,
        "the softmax node cannot be exchanged alone: its axes are not (heads, queries, keys)",
    ),
    (
        ("softmax",),
        "MASK_FILLS",
        lambda t: t.mixed_fills and not t.swappable,
        "masks with different fills: rows without a key depend on their order; give one bool mask",
    ),
    (
        ("sigmoid", "relu"),
        "PROBS_ESCAPE",
        lambda t: bool(t.escapes),
        "the attention weights are read elsewhere; allow=['other_weights'] accepts other weights",
    ),
    (
        ("hydra", "skipat"),
        "PROBS_ESCAPE",
        lambda t: bool(t.escapes),
        "the attention weights are read elsewhere; call the model without returning them",
    ),
    (
        _CHEAP,
        "DROPOUT_TRAINING",
        lambda t: t.dropout > 0,
        "attention dropout is active; allow=['drop_dropout'] accepts losing it",
    ),
    (("hydra", "skipat"), "CROSS_GRAPH", lambda t: t.cached, "keys and values come from a cache"),
    (
        ("skipat",),
        "NOT_ATTENTION:cross",
        lambda t: t.kind != "self",
        "skipat reuses the previous self attention; this site is not self attention",
    ),
    (
        ("hydra",),
        "NEEDS_PARAMS",
        lambda t: t.value_dim_differs,
        "hydra multiplies keys with values and needs equal head dims",
    ),
    (
        ("skipat",),
        "CROSS_GRAPH",
        lambda t: not t.previous,
        "no earlier attention block of the same width and length in this graph",
    ),
)


def legality(
    traits: Traits, at: Decline, allow: Collection[str] = ()
) -> dict[str, Decline | None]:
    """Per form ``None`` (legal) or the Decline, located where ``at`` is."""
    found: dict[str, Decline | None] = dict.fromkeys(FORMS)
    if traits.unread is not None:
        found["hydra"] = replace(traits.unread, path=at.path, source=at.source)
    for forms, code, applies, hint in RULES:
        if not applies(traits):
            continue
        for form in forms:
            waived = code == "DROPOUT_TRAINING" and "drop_dropout" in allow
            waived |= code == "PROBS_ESCAPE" and "other_weights" in allow and form in SWAPPED
            if found[form] is None and not waived:
                found[form] = Decline(code, at.path, at.source, hint, traits.escapes or at.node)
    return found
