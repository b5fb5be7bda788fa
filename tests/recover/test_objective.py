"""Losses of a unit are averaged over its runs; padding has no part in them."""

from __future__ import annotations

import pytest
import torch
from recovery_problems import FORMS, Padded
from torch import nn

from attnpass import Capture, Plan
from attnpass.recover.global_loss import GlobalLoss
from attnpass.recover.local_loss import LocalLoss
from attnpass.recover.objective import floating_dtypes, mean_losses


@pytest.mark.parametrize("form", ["sigmoid", "hydra", "skipat"])
@pytest.mark.parametrize("outputs", ["local", "logits", "features"])
def test_padding_has_no_part_in_the_losses(form, outputs):
    torch.manual_seed(0)
    net = Padded().train()
    x = torch.randn(2, 6, 8)
    keep = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    plan = Plan.create(net, x, keep, form=form, form_options=FORMS[form])
    assert form in {e.form for e in plan.sites.values()}
    capture = Capture(net).trace(x, keep)
    if outputs == "local":
        loss = LocalLoss(capture, {"": plan})
    else:
        loss = GlobalLoss(net, capture, plan, outputs, ())
    first = mean_losses(loss, (x, keep))
    other = x.clone()
    other[1, 3:] = 7.0
    assert mean_losses(loss, (other, keep)) == pytest.approx(first, rel=1e-4)
    other[1, :3] = 7.0
    assert mean_losses(loss, (other, keep)) != pytest.approx(first, rel=1e-2)


class TwoRuns:
    """An objective whose unit ``a`` runs twice."""

    name, share, units, dtypes, recompute = "local", 1.0, {}, {torch.float32}, None

    def losses(self, batch):
        assert not torch.is_grad_enabled()
        yield ("", "a"), torch.tensor(1.0)
        yield ("", "b"), torch.tensor(5.0)
        yield ("", "a"), torch.tensor(2.0)


def test_the_losses_of_a_unit_are_averaged_without_gradients():
    assert mean_losses(TwoRuns(), ()) == {("", "a"): 1.5, ("", "b"): 5.0}


def test_dtypes_are_of_floating_parameters():
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2).half()})
    net.number = nn.Parameter(torch.tensor(1), requires_grad=False)
    assert floating_dtypes(net) == {torch.float32, torch.float16}
