"""A random plan of a model."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

import attnpass
from attnpass.plan import Delta, Entry, Plan
from attnpass.site import AttentionSite
from random_use.models import Model


def entry(pick: random.Random, model: Model, site: AttentionSite) -> Entry:
    """A form, with options, that is legal at a site."""
    form = pick.choice(("sigmoid", "sigmoid", "relu", "relu", "hydra", "skipat", "softmax"))
    here_alone = model.spec.cached or model.spec.mask not in ("none", "causal")
    if site.legal[form] is not None or (form in ("hydra", "skipat") and here_alone):
        # legal at this size or without a cache, perhaps not at the next call
        form = "sigmoid" if site.legal["sigmoid"] is None else "softmax"
    return Entry(form, options_of(pick, form), site.fits())


def options_of(pick: random.Random, form: str) -> dict[str, Any]:
    """Options of a form; ``L=None`` is the site's own."""
    length = {"L": pick.choice(("keys", "visible", 3.0, None, None))}
    if form == "relu":
        h, alpha = pick.choice(("relu", "relu2", "softplus")), pick.choice((1.0, 0.5))
        return {**length, "h": h, "alpha": alpha}
    if form == "skipat":
        return {"r": pick.choice((0.0, 1.0, 1.0)), "kernel": pick.choice((3, 5))}
    return length if form == "sigmoid" else {}


def random_plan(pick: random.Random, model: Model, x: Tensor, keep: Any) -> Plan:
    """Forms drawn for every site, parameters away from their start, deltas on some weights."""
    capture = attnpass.Capture(model).trace(x, keep)
    with torch.no_grad():
        entries = {site.name: entry(pick, model, site) for site in capture.sites}
        first = capture.sites[0]
        if pick.random() < 0.4:
            entries[first.name] = Entry("softmax", {}, first.fits())
        plan = capture.plan(entries)
        for p in plan.parameters():
            p.add_(0.3 * torch.randn(p.shape))
        for name, weights in capture.projections().items():
            # SkipAt reads no projection of its own; what it leaves out, others may share
            if plan.sites[name].form in ("softmax", "skipat") or pick.random() < 0.5:
                continue
            for path, w in weights.items():
                if path.endswith("weight") and pick.random() < 0.5:
                    delta = Delta(w.shape, pick.choice((None, 2)))
                    for p in delta.parameters():
                        p.copy_(torch.randn(p.shape) * 0.2)
                    plan.deltas.setdefault(name, {})[path] = delta
    plan.round_trip = pick.random() < 0.3
    capture.close()
    return plan


def bare_form(
    pick: random.Random, model: Model, x: Tensor, keep: Any
) -> tuple[dict[str, Any], Plan]:
    """Backend options that name one form for all sites, and the plan that this amounts to."""
    form = pick.choice(("sigmoid", "relu"))
    options = options_of(pick, form)
    plan = Plan.create(model, x, keep, form=form, form_options=options)
    return {"form": form, "form_options": options}, plan
