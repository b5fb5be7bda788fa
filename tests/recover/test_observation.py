"""Observation: every site until it has enough, every graph as it is, masks stored once."""

from __future__ import annotations

import pytest
import torch
from recovery_problems import TINY
from torch import Tensor, nn

import attnpass
from attnpass.recover import observation
from attnpass.recover.observation import observe
from attnpass.task import load_task


def test_a_mask_is_kept_once_for_all_layers():
    torch.manual_seed(0)
    net = Masks().eval()
    x, keep = torch.randn(2, 6, 8), torch.rand(2, 1, 6, 6) > 0.3
    capture = attnpass.Capture(net).trace(x, keep)
    found = observe(capture, [(x, keep), (x, keep)])
    kept = [s.keep for samples in found.samples.values() for s in samples]
    kept += [m for masks in found.masks.values() for m in masks]
    assert len(kept) == 12 and all(torch.equal(m, keep) for m in kept)
    assert len({m.data_ptr() for m in kept}) == 1 and keep.data_ptr() != kept[0].data_ptr()


class Masks(nn.Module):
    """Three layers of attention under one arbitrary mask."""

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        for _ in range(3):
            q = x.unflatten(2, (2, 4)).transpose(1, 2)
            y = nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=keep)
            x = x + y.transpose(1, 2).flatten(2)
        return x


def test_skipat_learns_from_more_items_than_are_sampled(monkeypatch):
    monkeypatch.setattr(observation, "ITEMS", 3)
    monkeypatch.setattr(observation, "BLOCK_ITEMS", 7)
    task = load_task(TINY)
    capture = attnpass.Capture(task.model).trace(*task.example)
    batches = [tuple(x[:2] for x in inputs) for inputs in task.calibration] * 5
    observed = observe(capture, batches)
    for site in capture.sites:
        assert sum(len(s.q) for s in observed.samples[site.name]) == 3
    assert {sum(len(z) for z, _, _ in own) for own in observed.blocks.values()} == {8}
    assert not observe(capture, batches, blocks=False).blocks


class Either(nn.Module):
    """Causal by itself, unless it is given a mask: two graphs of one attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (y.unflatten(-1, (4, 8)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
        return y.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("first", [0, 1])
@torch.no_grad()
def test_every_graph_is_observed_as_it_is(first):
    torch.manual_seed(0)
    model, x = Either().eval(), torch.randn(2, 10, 32)
    batches = [(x, torch.rand(2, 1, 10, 10) > 0.3), (x,)]
    batches = [batches[first], batches[1 - first]]
    capture = attnpass.Capture(model).trace(*batches[0])
    found = observe(capture, batches)
    (samples,) = found.samples.values()
    for batch, sample in zip(batches, samples, strict=True):
        torch.testing.assert_close(sample.out.transpose(1, 2).flatten(2), model(*batch))
        assert sample.causal == (len(batch) == 1)


class Windows(nn.Module):
    """A first attention in windows that join the batch, a second over all."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 24), nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        x = x + self._attend(self.a, x.reshape(b * t // 4, 4, 8)).reshape(b, t, 8)
        return x + self._attend(self.b, x)

    def _attend(self, qkv: nn.Module, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (2, 4)).transpose(1, 2) for y in qkv(x).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return y.transpose(1, 2).flatten(2)


def test_every_site_is_observed_until_it_has_enough():
    batches = [(torch.randn(1, 256, 8),) for _ in range(observation.ITEMS + 3)]
    capture = attnpass.Capture(Windows().eval()).trace(*batches[0])
    found = observe(capture, batches, blocks=False)
    assert (
        sorted(sum(len(s.q) for s in x) for x in found.samples.values()) == [observation.ITEMS] * 2
    )
    assert min(found.items.values()) == observation.ITEMS
