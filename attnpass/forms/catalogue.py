"""The forms by name: the options of each, and the module that a form puts at a site."""

from __future__ import annotations

from typing import Any

from torch import nn

from attnpass.errors import OptionError
from attnpass.forms.hydra import Hydra
from attnpass.forms.pointwise import Pointwise, Weights
from attnpass.forms.skipat import SkipAt
from attnpass.forms.softmax import Softmax, SoftmaxWeights
from attnpass.kernels.activations import RELU_FAMILY
from attnpass.kernels.tile import Tiles
from attnpass.site import FORMS, AttentionSite

OPTIONS: dict[str, dict[str, Any]] = {
    "softmax": {"learns": False},
    "sigmoid": {"L": None, "approximate": "none"},
    "relu": {"h": "relu", "alpha": 1.0, "L": None},
    "hydra": {},
    "skipat": {"r": 0.0, "kernel": 5},
}
"""The options of each form, with their defaults.

``L``: the length of ``Pointwise``; None lets the site's mask decide. ``learns``: whether the
projections of a softmax site may have weight deltas.
"""


def check_names(form: str, options: dict[str, Any]) -> None:
    """Check the names alone.

    Raises:
        OptionError: an unknown form, or an option that the form does not have.
    """
    if form not in FORMS:
        raise OptionError(f"expected a form of {', '.join(FORMS)}, got {form!r}")
    unknown = sorted(set(options) - set(OPTIONS[form]))
    if unknown:
        takes = ", ".join(OPTIONS[form]) or "no options"
        raise OptionError(f"expected options of form {form} ({takes}), got {', '.join(unknown)}")


def check_options(form: str, options: dict[str, Any]) -> None:
    """Check names and values, as ``build`` does, without a site.

    Raises:
        OptionError: an unknown form or option, or a value out of range.
    """
    check_names(form, options)
    if form == "softmax" and not isinstance(options.get("learns", False), bool):
        raise OptionError(f"expected learns to be true or false, got {options['learns']!r}")
    if form == "skipat":
        SkipAt(1, **options)
    elif form == "relu" and options.get("h", "relu") not in RELU_FAMILY:
        raise OptionError(f"expected h in {RELU_FAMILY}, got {options['h']!r}")
    elif form in ("sigmoid", "relu"):
        length = options.get("L")
        Pointwise(
            1,
            1,
            1,
            h=options.get("h", "sigmoid"),
            alpha=options.get("alpha", 1.0),
            approximate=options.get("approximate", "none"),
            length="keys" if length is None else length,
            trainable=False,
        )


def default_length(site: AttentionSite) -> str:
    """The option ``L`` of a site: ``visible`` where a mask is known, else ``keys``.

    So a row has the same L in the whole sequence and in a step that reads its keys from a cache.
    """
    return "visible" if site.mask else "keys"


def build(
    form: str,
    site: AttentionSite,
    options: dict[str, Any] | None = None,
    *,
    trainable: bool = True,
    tiles: Tiles | None = None,
) -> nn.Module:
    """The module of ``form`` for ``site``, its parameters at their start.

    Args:
        form: a name of ``site.FORMS``.
        site: the attention whose sizes, scale and masks the module takes.
        options: of the form; options that are left out have the defaults of ``OPTIONS``.
        trainable: whether the module has parameters; without them it uses constants.
        tiles: measured launch parameters of the kernels.

    Raises:
        OptionError: an unknown form or option, or a value out of range.
    """
    given = dict(options or {})
    check_options(form, given)
    o = {**OPTIONS[form], **given}
    causal, scale = "causal" in site.mask, 1.0 if site.scale is None else site.scale
    if form == "softmax" and (site.swapped or site.sink or site.mixed_fills):
        return SoftmaxWeights()
    if form == "softmax":
        return Softmax(
            scale=scale, causal=causal, fill=site.fill, added=site.added, dropout=site.dropout
        )
    if form == "hydra":
        return Hydra(site.heads, site.head_dim, causal=causal, trainable=trainable)
    if form == "skipat":
        return SkipAt(
            site.width or 0,
            r=o["r"],
            kernel=o["kernel"],
            grid=site.grid,
            prefix=site.prefix if site.grid else 0,
            causal=causal,
        )
    kind = Weights if site.swapped else Pointwise
    return kind(
        site.heads,
        site.kv_heads,
        site.head_dim,
        h=o.get("h", "sigmoid"),
        scale=scale,
        causal=causal,
        length=default_length(site) if o["L"] is None else o["L"],
        alpha=o.get("alpha", 1.0),
        approximate=o.get("approximate", "none"),
        trainable=trainable,
        centred=not site.swapped,
        tiles=tiles,
    )
