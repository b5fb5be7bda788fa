"""The global loss is that of outputs and hidden states, against plain torch by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from recovery_problems import ByHand, batches, built, data, model, planned, prepared, random_model
from torch import Tensor, nn

import attnpass
from attnpass import Capture, Plan
from attnpass.errors import OptionError
from attnpass.recover import global_loss
from attnpass.recover.answers import answer
from attnpass.recover.distances import divergence, relative_error
from attnpass.recover.global_loss import HIDDEN_WEIGHT, GlobalLoss
from attnpass.recover.objective import mean_losses


def test_the_global_loss():
    net = model()
    plan = planned(net)
    capture = prepared(net, plan)
    (x,) = batches()[0]
    ((_, loss),) = GlobalLoss(net, capture, plan, "logits", ()).losses((x,))
    ((_, plain),) = GlobalLoss(net, capture, plan, "features", ()).losses((x,))

    def read(net: nn.Module) -> tuple[Tensor, list[Tensor]]:
        """Its output, and what its linear layers outside the attention read."""
        found = []
        for name, layer in net.named_modules():
            if isinstance(layer, nn.Linear) and ".attn" not in name:
                layer.register_forward_pre_hook(lambda m, given: found.append(given[0]))
        with torch.no_grad():
            return net(x), found

    student = copy.deepcopy(net)
    for i, block in enumerate(student.blocks):
        site = f"blocks.{i}.attn"
        block.attn = ByHand(block.attn, built(capture, plan, site), plan, site)
    (want, features), (got, own) = read(copy.deepcopy(net)), read(student)
    assert len(features) == 7
    p, q = (want / 2).softmax(-1), (got / 2).softmax(-1)
    divergence = 4 * (p * (p / q).log()).sum(-1).mean()
    off = sum(
        (b - a).square().sum() / a.square().sum() for a, b in zip(features, own, strict=True)
    )
    square = (got - want).square().sum() / want.square().sum()
    added = HIDDEN_WEIGHT * off / len(features)
    torch.testing.assert_close(loss.detach(), divergence + added, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(plain.detach(), square + added, rtol=1e-3, atol=1e-5)


def test_classes_that_are_ruled_out_do_not_spoil_the_global_loss():
    class Ruled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def forward(self, x: Tensor) -> Tensor:
            out = torch.arange(10) == 3
            return self.net(x).masked_fill(out, -float("inf"))

    net = Ruled().eval()
    plan = Plan.create(net, data(), form="sigmoid")
    attnpass.calibrate(net, plan, batches())
    (stage,) = attnpass.distil(net, plan, batches(), steps=6, local=0)
    assert 0 < stage.losses[-1] < 10


def test_a_model_without_floating_outputs_is_one_line():
    class Classes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).argmax(-1)

    net = Classes().eval()
    plan = Plan.create(net, data(), form="sigmoid")
    with pytest.raises(OptionError, match="expected a model that returns a floating tensor"):
        attnpass.distil(net, plan, batches(), steps=4, local=0)


def test_features_of_other_shapes_are_no_pair(monkeypatch):
    """A router may send other tokens to a part of the converted model: it has other rows."""
    net, x = random_model(), torch.rand(2, 1, 32, 32)

    def routed(capture, batch, **_):
        found = answer(capture, batch)
        if capture is objective.student:
            first = sorted(found.hidden)[0]
            found.hidden[first] = found.hidden[first][:1]
        return found

    plan = Plan.create(net, x, form="sigmoid")
    capture = Capture(net).trace(x)
    objective = GlobalLoss(net, capture, plan, "logits", ())
    whole = mean_losses(objective, (x,))
    monkeypatch.setattr(global_loss, "answer", routed)
    fewer = mean_losses(objective, (x,))
    assert 0 < fewer[("", "")] != whole[("", "")]


def test_what_a_model_returns_beside_its_logits_has_no_classes():
    class Both(nn.Module):
        """Logits, and the features that they are made of."""

        def __init__(self) -> None:
            super().__init__()
            self.net = model()
            self.net.head, self.head = nn.Identity(), self.net.head

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            features = self.net(x)
            return self.head(features), features

    net = Both()
    plan = Plan.create(net, *batches()[0], form="hydra")
    capture = prepared(net, plan)
    (x,) = batches()[0]
    ((_, loss),) = GlobalLoss(net, capture, plan, "logits", ()).losses((x,))
    student = Capture(net)
    student.use(plan)
    want, got = answer(capture, (x,)), answer(student, (x,))
    hidden = sum(relative_error(got.hidden[k], h) for k, h in want.hidden.items())
    outputs = divergence(got.outputs[0], want.outputs[0], None)
    outputs = outputs + relative_error(got.outputs[1], want.outputs[1])
    expected = outputs + HIDDEN_WEIGHT * hidden / len(want.hidden)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
