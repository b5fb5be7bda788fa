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
    lengths: list[Any] = ["keys", "visible", 3.0]
    if model.spec.mask in ("none", "causal"):  # there the mask decides alike at every size
        lengths.append(None)
    form = pick.choice(("sigmoid", "sigmoid", "relu", "softmax"))
    options: dict[str, Any] = {"L": pick.choice(lengths)}
    if form == "relu":
        options["h"] = pick.choice(("relu", "relu2", "softplus"))
        options["alpha"] = pick.choice((1.0, 0.5))
    if site.legal[form] is not None or form == "softmax":
        form, options = "softmax", {}
    return Entry(form, options, site.fits())


def random_plan(pick: random.Random, model: Model, x: Tensor, keep: Any) -> Plan:
    """Forms drawn for every site, parameters away from their start, deltas on some weights."""
    capture = attnpass.Capture(model).trace(x, keep)
    with torch.no_grad():
        plan = capture.plan({site.name: entry(pick, model, site) for site in capture.sites})
        for p in plan.parameters():
            p.add_(0.3 * torch.randn(p.shape))
        for name, weights in capture.projections().items():
            if plan.sites[name].form == "softmax" or pick.random() < 0.5:
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
