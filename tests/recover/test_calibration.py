"""Calibration as a library call: what it changes, what it refuses, what is left."""

from __future__ import annotations

import math

import pytest
import torch
from recovery_problems import TINY
from torch import Tensor, nn

import attnpass
from attnpass.errors import OptionError, PlanError
from attnpass.task import load_task
from attnpass.tuner.digits import DigitsViT


def test_calibrate_is_one_call_and_leaves_the_model_alone():
    task = load_task(TINY)
    before = {k: v.clone() for k, v in task.model.state_dict().items()}
    plan = attnpass.Plan.create(task.model, *task.example, form="sigmoid")
    start = plan.hash
    errors = attnpass.calibrate(task.model, plan, task.calibration)
    assert set(errors) == set(plan.sites) and all(0 <= e < 0.1 for e in errors.values())
    assert plan.hash != start
    for name, value in task.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_calibrate_wants_inputs_and_a_plan_of_the_model():
    task = load_task(TINY)
    plan = attnpass.Plan.create(task.model, *task.example, form="sigmoid")
    with pytest.raises(OptionError, match="expected at least one batch of inputs"):
        attnpass.calibrate(task.model, plan, [])
    other = DigitsViT(dim=16, depth=2, heads=2).eval()
    with pytest.raises(PlanError, match="expected the plan's site blocks.2.attn in the model"):
        attnpass.calibrate(other, plan, task.calibration)


def test_a_part_in_training_mode_keeps_its_buffers():
    net = DigitsViT(dim=16, depth=2, heads=2).eval()
    net.stem[1].train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = torch.rand(4, 1, 32, 32)
    plan = attnpass.Plan.create(net, x, form="sigmoid")
    attnpass.calibrate(net, plan, [(x,)])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize(
    ("form", "options"), [("sigmoid", {}), ("hydra", {}), ("skipat", {"r": 0.5})]
)
def test_frozen_parameters_are_judged_and_stay(form, options):
    task = load_task(TINY)
    plan = attnpass.Plan.create(task.model, *task.example, form=form, form_options=options)
    before = plan.frozen().hash
    stayed = attnpass.calibrate(task.model, plan, task.calibration)
    assert plan.hash == before
    free = attnpass.Plan.create(task.model, *task.example, form=form, form_options=options)
    fitted = attnpass.calibrate(task.model, free, task.calibration)
    assert all(stayed[s] > fitted[s] for s in fitted) and fitted


class Exchanged(nn.Module):
    """Attention of which only the softmax node can be exchanged."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.qkv, self.heads = how, nn.Linear(32, 96), nn.Linear(4, 4)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        v = self.heads_of(x)[2]
        return (self.logits(x, keep).softmax(-1) @ v).transpose(1, 2).flatten(2)

    def heads_of(self, x: Tensor) -> list[Tensor]:
        return [y.unflatten(-1, (4, 8)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1)]

    def logits(self, x: Tensor, keep: Tensor) -> Tensor:
        q, k, _ = self.heads_of(x)
        s = q @ k.transpose(-2, -1)
        if self.how == "talking heads":
            return self.heads(s.transpose(1, 3)).transpose(1, 3)
        s = 5 * torch.tanh(s / 5)
        if self.how == "causal":
            below = torch.ones(s.shape[-2:], dtype=torch.bool).tril()
            return s.masked_fill(~below, -math.inf)
        return s.masked_fill(~keep[:, None, None], -math.inf) if self.how == "padding" else s


@pytest.mark.parametrize("form", ["sigmoid", "relu"])
@pytest.mark.parametrize("how", ["soft cap", "causal", "padding", "talking heads"])
@torch.no_grad()
def test_where_softmax_alone_is_exchanged_its_logits_teach(how, form):
    torch.manual_seed(0)
    model = Exchanged(how).eval()
    model.qkv.weight[:64] *= 3
    x, keep = torch.randn(6, 40, 32), torch.ones(6, 40, dtype=torch.bool)
    keep[1:, 25:] = False
    rows = keep.unsqueeze(-1) if how == "padding" else 1.0
    batch = (x, keep)
    plan = attnpass.Plan.create(model, *batch, form=form)
    (site,) = attnpass.find_sites(model, *batch).sites
    assert site.swapped

    def error() -> float:
        capture = attnpass.Capture(model).trace(*batch)
        capture.use(plan, strict=True)
        want = model(*batch) * rows
        return float((capture(*batch) * rows - want).square().sum() / want.square().sum())

    before = error()
    (told,) = attnpass.calibrate(model, plan, [batch]).values()
    logits = model.logits(*batch)
    counts = keep[:, None, :, None] if how == "padding" else torch.ones(1)
    wanted = logits.softmax(-1).double() * counts
    module = plan.module(site)
    module.causal = False  # -inf says it already
    weights = module(logits, logits > -math.inf).double() * counts
    left = float((weights - wanted).square().sum() / wanted.square().sum())
    assert told == pytest.approx(left, rel=1e-4) and error() < 0.9 * before


class Added(Exchanged):
    """A float mask of the caller's own."""

    def logits(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, _ = self.heads_of(x)
        return 5 * torch.tanh(q @ k.transpose(-2, -1) / 5) + mask


@pytest.mark.parametrize("fill", [-1e9, torch.finfo(torch.float32).min, -math.inf])
@torch.no_grad()
def test_a_mask_that_is_added_to_a_map_is_a_mask(fill):
    torch.manual_seed(0)
    model, x = Added("").eval(), torch.randn(6, 40, 32)
    mask = torch.zeros(6, 1, 1, 40)
    mask[..., 25:] = fill
    plan = attnpass.Plan.create(model, x, mask, form="relu")
    (told,) = attnpass.calibrate(model, plan, [(x, mask)]).values()
    (values,) = plan.values.values()
    assert told < 0.5 and float(values["b"].abs().max()) < 10
