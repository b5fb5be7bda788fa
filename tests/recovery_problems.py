"""Models, plans and scripted objectives of the tests of recovery."""

from __future__ import annotations

import copy
import math

import house
import torch
from torch import Tensor, nn

import attnpass
from attnpass import Capture, Plan, forms
from attnpass.fingerprint import digest_weights
from attnpass.recover.checkpoint import Checkpoint
from attnpass.recover.distillation import add_deltas
from attnpass.recover.options import DistilOptions
from attnpass.recover.samples import Sample
from attnpass.recover.trainer import Trainer
from attnpass.recover.units import TrainedParameter, Unit
from attnpass.tuner.digits import DigitsViT

TINY = f"{house.ROOT}/tests/tiny_tasks.py:tiny"

FORMS = {
    "sigmoid": {},
    "relu": {},
    "hydra": {},
    "skipat": {"r": 0.5, "kernel": 3},
}

CALIBRATED: dict[tuple[str, str], dict] = {}
"""Values of plans by the plan's hash and the digest of the model: calibration takes seconds."""


def random_model() -> nn.Module:
    torch.manual_seed(0)
    return DigitsViT(dim=16, depth=3, heads=2).eval()


def data(n: int = 2) -> Tensor:
    return torch.rand(n, 1, 32, 32, generator=torch.Generator().manual_seed(1))


def model() -> nn.Module:
    """Random, but with attention that looks somewhere and tokens that differ."""
    net = random_model()
    with torch.no_grad():
        net.pos_embed.mul_(30)
        for block in net.blocks:
            block.attn.qkv.weight.mul_(6)
    return net


def batches(n: int = 3, size: int = 4) -> list[tuple[Tensor]]:
    x = torch.rand(n * size, 1, 32, 32, generator=torch.Generator().manual_seed(5))
    return [(part,) for part in x.split(size)]


def planned(net: nn.Module, form: str = "sigmoid", **given) -> Plan:
    plan = Plan.create(net, data(), form=form, form_options=FORMS.get(form), **given)
    known = plan.hash, digest_weights(net.state_dict().values())
    if known not in CALIBRATED:
        attnpass.calibrate(net, plan, batches())
        CALIBRATED[known] = plan.values
    plan.values = copy.deepcopy(CALIBRATED[known])
    return plan


def prepared(net: nn.Module, plan: Plan, rank: int | None = None) -> Capture:
    """A capture of the original, and deltas that are not 0."""
    capture = Capture(net).trace(data())
    add_deltas(capture, plan, DistilOptions(rank=rank))
    generator = torch.Generator().manual_seed(3)
    for deltas in plan.deltas.values():
        for delta in deltas.values():
            for p in delta.parameters():
                p.data.add_(torch.randn(p.shape, generator=generator) * 0.02)
    return capture


class ByHand(nn.Module):
    """A block's attention with a form, written out."""

    def __init__(self, attn: nn.Module, form: nn.Module, plan: Plan, site: str) -> None:
        super().__init__()
        self.heads, self.form = attn.heads, form
        self.values = {k: v.to(attn.qkv.weight.dtype) for k, v in plan.values[site].items()}
        deltas = plan.deltas[site]
        self.w = {n: deltas[f"{site}.{n}"].add(p.detach()) for n, p in attn.named_parameters()}

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        qkv = nn.functional.linear(x, self.w["qkv.weight"], self.w["qkv.bias"])
        q, k, v = qkv.reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = torch.func.functional_call(self.form, self.values, (q, k, v))
        mixed = mixed.transpose(1, 2).reshape(b, n, d)
        return nn.functional.linear(mixed, self.w["proj.weight"], self.w["proj.bias"])


def built(capture: Capture, plan: Plan, site: str) -> nn.Module:
    """The form of a site, with values of its own."""
    found = {s.name: s for s in capture.sites}[site]
    return forms.build(plan.sites[site].form, found, plan.sites[site].options)


def state(net: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}


class Stopped(Exception):
    pass


class Scripted:
    """An objective whose losses on the selection are given."""

    name, share, start, dtypes, recompute = "local", 1.0, 1.0, {torch.float32}, None

    def __init__(self, looks: list[float], late: bool = False) -> None:
        self.value = nn.Parameter(torch.zeros(2, 2))
        self.units = {("", "a"): Unit([TrainedParameter(self.value, 1.0, late)])}
        self.looks, self.seen = looks, []

    def losses(self, batch):
        if torch.is_grad_enabled():
            yield ("", "a"), self.start + self.value.sum() * 100
        else:
            self.seen.append(self.value.detach().clone())
            yield ("", "a"), torch.tensor(self.looks[len(self.seen) - 1])


def trained(objective: Scripted, selection=None, share: float = 1.0, **options) -> Trainer:
    trainer = Trainer(objective, DistilOptions(**options), share, Checkpoint(None, ""))
    trainer.run(batches(), batches(1) if selection is None else selection, None)
    return trainer


class GraphPerBlock(nn.Module):
    """Every block is a graph of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = random_model()

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        x = net.patch_embed(net.stem(x)).flatten(2).transpose(1, 2)
        for block in net.blocks:
            torch._dynamo.graph_break()
            x = block(x)
        return x.mean(1)


def closed(form: str, **options):
    """A form over 2 heads, one sample of softmax attention over 6 of 8 keys."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, 8, 4, dtype=torch.float64) for _ in "qkv")
    keep = torch.ones(3, 1, 1, 8, dtype=torch.bool)
    keep[..., 6:] = False
    logits = (q @ k.mT / 2).masked_fill(~keep, -math.inf)
    sample = Sample(q, k, v, None, keep, logits.softmax(-1) @ v)
    if form == "hydra":
        return forms.Hydra(2, 4, **options), sample
    return forms.Pointwise(2, 2, 4, h=form, **options), sample


def shifted(z: torch.Tensor) -> torch.Tensor:
    """A linear map of rank 4 of rows ``[B, N, 12]``, with an offset."""
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(*s, generator=generator) for s in ((12, 4), (4, 12)))
    return z @ left @ right + 0.5


class Padded(nn.Module):
    """Two blocks over ``[B, T, D]`` with a padding mask ``[B, T]``, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.MultiheadAttention(8, 2, batch_first=True) for _ in "ab")
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        for attn in (self.first, self.second):
            x = x + attn(x, x, x, key_padding_mask=~keep, need_weights=False)[0]
        return self.last(x)
