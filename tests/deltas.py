"""Models, and plans that change every projection of every site, for the tests of deltas."""

from __future__ import annotations

import copy

import torch
from torch import nn

from attnpass import Capture, Plan
from attnpass.plan import Delta
from attnpass.tuner.digits import DigitsViT


def model() -> nn.Module:
    torch.manual_seed(0)
    return DigitsViT(dim=16, depth=3, heads=2).eval()


class Alone(nn.Module):
    """Attention in the model itself, below no module."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in "qkvo")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (p(x).unflatten(2, (2, 8)).transpose(1, 2) for p in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.o(y.transpose(1, 2).flatten(2))


class Broken(nn.Module):
    """Every block is a graph of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = model()

    def forward(self, x):
        net = self.net
        x = net.patch_embed(net.stem(x)).flatten(2).transpose(1, 2)
        for block in net.blocks:
            torch._dynamo.graph_break()
            x = block(x)
        return x.mean(1)


def data(n: int = 2) -> torch.Tensor:
    return torch.rand(n, 1, 32, 32, generator=torch.Generator().manual_seed(1))


def changed(net: nn.Module, form: str = "sigmoid", rank: int | None = None, **given) -> Plan:
    """A plan that changes every projection of every site by random numbers."""
    capture = Capture(net).trace(data())
    plan = Plan.create(net, data(), form=form, **given)
    generator = torch.Generator().manual_seed(2)
    for site, weights in capture.projections().items():
        if plan.sites[site].form == "softmax":
            continue
        for path, weight in weights.items():
            delta = Delta(weight.shape, rank)
            for parameter in delta.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data.copy_(noise * 0.1)
            plan.deltas.setdefault(site, {})[path] = delta
    return plan


def expected(net: nn.Module, plan: Plan, x: torch.Tensor) -> torch.Tensor:
    """What a copy of the model gives whose weights are the sums, in float64."""
    other = copy.deepcopy(net).double()
    weights = dict(other.named_parameters(remove_duplicate=False))
    bare = Plan(plan.sites)
    bare.values = {
        s: {k: nn.Parameter(v.detach().double()) for k, v in own.items()}
        for s, own in plan.values.items()
    }
    with torch.no_grad():
        for deltas in plan.deltas.values():
            for path, delta in deltas.items():
                parts = dict(delta.named_parameters())
                change = parts["full"] if "full" in parts else parts["left"] @ parts["right"]
                weights[path].add_(change.double().view(weights[path].shape))
        capture = Capture(other)
        capture.trace(x.double())
        capture.use(bare, strict=True)
        return capture(x.double())


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def compiled(net, plan, inner="aot_eager"):
    torch._dynamo.reset()
    return torch.compile(net, backend="attnpass", options={"plan": plan, "inner": inner})
