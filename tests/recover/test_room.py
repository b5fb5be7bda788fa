"""Micro-batches: the same gradients from parts of a batch, as large as memory allows."""

from __future__ import annotations

import pytest
import torch
from recovery_problems import batches, model, planned, prepared

from attnpass.recover import room
from attnpass.recover.checkpoint import Checkpoint
from attnpass.recover.global_loss import GlobalLoss
from attnpass.recover.local_loss import LocalLoss
from attnpass.recover.options import DistilOptions
from attnpass.recover.room import Room
from attnpass.recover.trainer import Trainer

CPU = torch.device("cpu")


def keeps(x, each=4096):
    """A forward pass that keeps so many bytes of every item."""
    w = torch.ones(each // 4, requires_grad=True)
    return (w * x[:, None]).exp().sum()


@pytest.mark.parametrize(
    ("free", "sizes"), [(40960, [5]), (16384, [3, 2]), (8192, [2, 2, 1]), (4096, [1] * 5)]
)
def test_a_batch_is_halved_until_its_parts_fit(free, sizes, monkeypatch):
    monkeypatch.setattr(room, "SHARE", 1.0)
    monkeypatch.setattr(room, "free_bytes", lambda device: free + 64)
    x, seen, warned = torch.ones(5), [], len(sizes) > 1
    made = Room(CPU, 0, None)

    def step(batch):
        keeps(*batch)
        seen.append(len(batch[0]))
        return seen[-1]

    if warned:
        with pytest.warns(UserWarning, match="memory is short: distillation takes"):
            found = list(made.learn((x,), step))
    else:
        found = list(made.learn((x,), step))
    assert [count for _, count in found] == seen and sorted(seen) == sorted(sizes)
    assert sum(share for share, _ in found) == pytest.approx(1)
    # as large a batch is not watched again, and known to be too large
    assert [count for _, count in made.learn((x,), step)] == sizes


def test_where_one_item_is_too_large_activations_are_computed_twice(monkeypatch):
    monkeypatch.setattr(room, "free_bytes", lambda device: 100)
    asked = []
    made = Room(CPU, 0, None, lambda: asked.append(True))
    with pytest.warns(UserWarning) as told:
        found = list(made.learn((torch.ones(3),), lambda batch: keeps(*batch)))
    assert len(found) == 3 and asked == [True] and made.recompute is None
    said = [str(w.message).partition("distillation ")[2] for w in told]
    assert said == ["takes 2 items at a time", "takes one at a time", "computes activations twice"]


def learner(objective, **options) -> Trainer:
    trainer = Trainer(objective, DistilOptions(steps=4, **options), 1.0, Checkpoint(None, ""))
    trainer.optimiser.step = lambda: None
    return trainer


@pytest.mark.parametrize("stage", ["local", "global"])
def test_parts_give_the_mean_gradient(stage):
    net = model()
    plan = planned(net)
    capture = prepared(net, plan)

    def objective():
        if stage == "local":
            return LocalLoss(capture, {"": plan})
        return GlobalLoss(net, capture, plan, "logits", ())

    (whole,) = batches(1, size=4)
    parts, totals = whole[0].split(3), None
    for x, share in zip(parts, (0.75, 0.25), strict=True):
        alone = objective()
        found = [
            (key, torch.autograd.grad(loss, alone.units[key].parameters))
            for key, loss in alone.losses((x,))
        ]
        scaled = [share * g for _, row in found for g in row]
        totals = scaled if totals is None else [a + b for a, b in zip(totals, scaled, strict=True)]
    trainer = learner(objective(), micro_batch=3, autocast=False)
    for share, rows in trainer.room.learn(whole, trainer._gradients):
        for key, _, gradients in rows:
            trainer._add(key, gradients, share)
    for p, want in zip(trainer.parameters, totals, strict=True):
        torch.testing.assert_close(p.grad, want, rtol=1e-4, atol=1e-7)


def test_recomputed_activations_give_the_same_gradients_and_keep_less():
    net = model()
    plan = planned(net)
    capture, (batch,) = prepared(net, plan), batches(1)
    found, kept = [], []
    for recomputed in (False, True):
        loss = GlobalLoss(net, capture, plan, "logits", ())
        loss.recomputed = recomputed
        stored = {}

        def pack(x, stored=stored):
            stored[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x.detach()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            ((_, value),) = loss.losses(batch)
        found.append(torch.autograd.grad(value, loss.unit.parameters, allow_unused=True))
        kept.append(sum(stored.values()))
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None) and (a is None or torch.equal(a, b))
    assert kept[1] < 0.8 * kept[0]
