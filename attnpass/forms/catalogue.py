"""The forms by name: the module that a form puts at a site."""

from __future__ import annotations

from typing import Any

from torch import nn

from attnpass.forms.hydra import Hydra
from attnpass.forms.options import OPTIONS, check_options
from attnpass.forms.pointwise import Pointwise, Weights
from attnpass.forms.skipat import SkipAt
from attnpass.forms.softmax import Softmax, SoftmaxWeights
from attnpass.kernels.tile import Tiles
from attnpass.site import AttentionSite


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
            scale=scale,
            causal=causal,
            fill=site.fill,
            added=site.added,
            dropout=site.dropout,
            tiles=tiles,
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
