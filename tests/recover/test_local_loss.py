"""The local loss is the relative error of a block's output, against float64 by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from recovery_problems import FORMS, ByHand, batches, built, model, planned, prepared
from torch import Tensor, nn

from attnpass import Capture, Plan, forms
from attnpass.recover.local_loss import LocalLoss
from attnpass.recover.objective import mean_losses

QUICK = {("sigmoid", 2), ("skipat", 2)}


def by_hand(capture: Capture, plan: Plan, site: str, at: int, x: Tensor) -> Tensor:
    """The local loss of the attention of block ``at`` in float64."""
    net, x = copy.deepcopy(capture.model).double(), x.double()
    inputs, outputs = {}, {}
    for i, block in enumerate(net.blocks):
        block.attn.register_forward_hook(
            lambda m, given, out, i=i: inputs.update({i: given[0]}) or outputs.update({i: out})
        )
    with torch.no_grad():
        net(x)
    form = built(capture, plan, site)
    if isinstance(form, forms.SkipAt):
        values = {k: v.double() for k, v in plan.values[site].items()}
        got = torch.func.functional_call(form, values, (outputs[at - 1],))
    else:
        got = ByHand(net.blocks[at].attn, form, plan, site)(inputs[at])
    want = outputs[at]
    return (got - want).square().sum() / want.square().sum()


# every form with full and low-rank deltas; two of the eight are quick enough for every check
@pytest.mark.parametrize(
    ("form", "rank"),
    [
        pytest.param(form, rank, marks=() if (form, rank) in QUICK else pytest.mark.slow)
        for form in FORMS
        for rank in (None, 2)
    ],
)
def test_the_local_loss_and_its_gradients(form, rank):
    net = model()
    plan = planned(net, form)
    capture = prepared(net, plan, rank)
    local = LocalLoss(capture, {"": plan})
    (x,) = batches()[0]
    found = dict(local.losses((x,)))
    sites = [n for n, e in plan.sites.items() if e.form == form]
    assert len(found) == len(sites) == (2 if form == "skipat" else 3)
    for site in sites:
        unit, loss = local.units["", site], found["", site]
        want = by_hand(capture, plan, site, int(site.split(".")[1]), x)
        torch.testing.assert_close(loss.double(), want, rtol=1e-4, atol=1e-6)
        got = torch.autograd.grad(loss, unit.parameters)
        expected = torch.autograd.grad(want, unit.parameters)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 + 1e-3 * float(b.abs().max()))


class Repeated(nn.Module):
    """One attention, called three times, a graph each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block = model().blocks[0]

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            torch._dynamo.graph_break()
            x = self.block(x) * 1.5
        return x


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_layer_that_runs_often_is_judged_by_all_its_runs():
    net = Repeated().eval()
    x = torch.randn(2, 9, 16)
    plan = Plan.create(net, x, form="sigmoid")
    local = LocalLoss(Capture(net).trace(x), {"": plan})
    losses = [float(loss.detach()) for _, loss in local.losses((x,))]
    assert len(losses) == 3 and len(set(losses)) == 3
    (mean,) = mean_losses(local, (x,)).values()
    assert mean == pytest.approx(sum(losses) / 3)
