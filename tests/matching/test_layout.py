"""Layouts: leading axes, transposes taken in, groups of key/value heads."""

import torch
from models.modules import Mapped


def test_transposes_without_gradients_stay_so():
    def core(m, q, k, v):
        with torch.no_grad():
            k = k.transpose(-1, -2)
        return (q @ k).softmax(-1) @ v

    model = Mapped(core).double()
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    options = {"form": "softmax", "inner": "eager"}
    run = torch.compile(model, backend="attnpass", options=options)
    (want,) = torch.autograd.grad(model(x).square().sum(), model.qkv.weight)
    (got,) = torch.autograd.grad(run(x).square().sum(), model.qkv.weight)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
