"""A model whose sites all run form ``softmax``, compared with eager in float64."""

from __future__ import annotations

import copy

import torch

import attnpass
from attnpass import forms

BOUND = 1e-5


def first(out):
    return out[0] if isinstance(out, tuple) else out


def error(got, want):
    """Largest difference over the largest value of ``want``."""
    assert got.shape == want.shape
    got, want = got.detach().double(), want.detach().double()
    assert torch.equal(got.isnan(), want.isnan())
    return ((got - want).nan_to_num().abs().max() / want.nan_to_num().abs().max()).item()


def cast(inputs, dtype):
    return tuple(
        x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs
    )


def softmax_capture(model, inputs, **options):
    """The model with every legal site as form ``softmax``, and the sites' names."""
    capture = attnpass.Capture(model, **options)
    capture.trace(*inputs)
    modules = {
        s.name: forms.build("softmax", s) for s in capture.sites if s.legal["softmax"] is None
    }
    capture.use_modules(modules)
    return capture, modules


def check(model, inputs, sites=1):
    """Output and gradients against eager in float64; returns the number of sites rewritten."""
    exact, wide = copy.deepcopy(model).double(), cast(inputs, torch.float64)
    want = first(exact(*wide))
    eager = first(model(*inputs))
    capture, modules = softmax_capture(model, inputs)
    if sites is not None:
        assert len(modules) == sites
    out = first(capture(*inputs))
    assert out.dtype == eager.dtype
    assert out.stride() == eager.stride()
    assert error(out, want) <= max(BOUND, 2 * error(eager, want))
    if not want.requires_grad:
        assert not out.requires_grad
        return len(modules)
    weight = torch.linspace(0.5, 1.5, want.numel()).view(want.shape)
    parameters = dict(model.named_parameters())
    wanted = torch.autograd.grad(
        (want * weight.double()).sum(), list(exact.parameters()), allow_unused=True
    )
    found = torch.autograd.grad((out * weight).sum(), list(parameters.values()), allow_unused=True)
    largest = max(w.abs().max() for w in wanted if w is not None)
    for name, got, ref in zip(parameters, found, wanted, strict=True):
        ref = torch.zeros_like(parameters[name]) if ref is None else ref
        got = torch.zeros_like(parameters[name]) if got is None else got
        off = (got.double() - ref.double()).abs().max() / largest
        assert off.item() <= BOUND, (name, off.item())
    return len(modules)
