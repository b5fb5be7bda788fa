"""CKA between layers: against its definition, and on models whose layers are known to repeat."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from tuning import TINY

from attnpass import Capture, Task
from attnpass.errors import CaptureError, MeasureError
from attnpass.recover import observe
from attnpass.task import load_task
from attnpass.tuner.check.similarity import _rows, cka, similarities
from attnpass.tuner.digits import DigitsViT, correct


def spelled(x, y):
    """The same by the four sums of the unbiased estimator, over distinct items."""
    n = x.shape[0]
    k, m = (a.flatten(1).double() @ a.flatten(1).double().T for a in (x, y))

    def hsic(k, m):
        total = 0.0
        ij = [(i, j) for i in range(n) for j in range(n) if i != j]
        total += sum(k[i, j] * m[i, j] for i, j in ij) / (n * (n - 1))
        four = [
            k[i, j] * m[q, r]
            for i, j in ij
            for q in range(n)
            for r in range(n)
            if len({i, j, q, r}) == 4
        ]
        three = [k[i, j] * m[i, q] for i, j in ij for q in range(n) if q not in (i, j)]
        total += sum(four) / math.perm(n, 4) - 2 * sum(three) / math.perm(n, 3)
        return float(total)

    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def test_it_is_the_unbiased_estimate():
    x, y = torch.randn(7, 3, 2), torch.randn(7, 5)
    assert cka(x, y) == pytest.approx(spelled(x, y), abs=1e-9)


def test_rotation_scale_and_shift_change_nothing_and_noise_has_none():
    x = torch.randn(200, 8)
    turned = 3 * x @ torch.linalg.qr(torch.randn(8, 8))[0] + 5
    assert cka(x, turned) == pytest.approx(1, abs=1e-5)
    assert abs(cka(x, torch.randn(200, 8))) < 0.1


def test_few_items_are_refused():
    with pytest.raises(MeasureError, match="expected at least 4 items to compare layers, got 3"):
        cka(torch.randn(3, 2), torch.randn(3, 2))


def repeating() -> Task:
    """The last three of four blocks have the same weights."""
    torch.manual_seed(0)
    model = DigitsViT(dim=16, depth=4, heads=2).eval()
    for block in model.blocks[2:]:
        block.load_state_dict(model.blocks[1].state_dict())
    images = torch.rand(16, 1, 32, 32)
    with torch.no_grad():
        labels = model(images).argmax(-1)
    return Task("repeating", model, (images[:2],), [(images,)], [((images,), labels)], correct)


def test_matrices_are_symmetric_with_one_on_the_diagonal():
    found = similarities(load_task(TINY))
    n = len(found.sites)
    assert found.sites == [f"blocks.{i}.attn" for i in range(3)]
    for matrix in (found.outputs, found.attention):
        for i in range(n):
            assert matrix[i][i] == pytest.approx(1)
            for j in range(n):
                assert matrix[i][j] == pytest.approx(matrix[j][i])


def test_layers_that_repeat_are_suggested():
    task = repeating()
    found = similarities(task, least=0.9)
    alike = {name for i, name in enumerate(found.sites) if i and found.outputs[i][i - 1] >= 0.9}
    assert set(found.suggested) == alike
    assert {"blocks.2.attn", "blocks.3.attn"} <= alike
    assert similarities(task, least=1.0).suggested == []


class Masked(nn.Module):
    """Three causal blocks that mask padding, too, where ``keep [B, T]`` is given."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.MultiheadAttention(8, 2, batch_first=True) for _ in "abc")

    def forward(self, x, keep=None):
        for attn in self.blocks:
            b, t, d = x.shape
            qkv = nn.functional.linear(x, attn.in_proj_weight, attn.in_proj_bias)
            q, k, v = qkv.view(b, t, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
            mask = None if keep is None else keep[:, None, None, :]
            y = nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=keep is None
            )
            x = x + attn.out_proj(y.transpose(1, 2).reshape(b, t, d))
        return x


def masked(batches) -> Task:
    torch.manual_seed(0)
    return Task("masked", Masked().eval(), batches[0], batches, [], lambda out, _: out[:, 0, 0])


def test_causal_layers_are_compared_by_the_query_that_sees_all_keys():
    x = torch.randn(8, 5, 8)
    task = masked([(x,)])
    capture = Capture(task.model).trace(x)
    (samples,) = observe(capture, [(x,)]).samples[capture.sites[0].name]
    found = _rows(capture.sites[0], [samples])
    scores = samples.q[:, :, -1:].double() @ samples.k.double().transpose(-1, -2)
    want = (scores * capture.sites[0].scale).softmax(-1)[:, :, 0]
    torch.testing.assert_close(found, want)
    assert all(x is not None for row in similarities(task).attention for x in row)


def test_padding_and_lengths_have_no_part():
    x, keep = torch.randn(8, 6, 8), torch.ones(8, 6, dtype=torch.bool)
    keep[:, 4:] = False
    other = torch.where(keep[..., None], x, 9.0)
    first, second = (similarities(masked([(y, keep)])) for y in (x, other))
    for a, b in zip(first.outputs, second.outputs, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    lengths = [(x, keep), (torch.randn(8, 7, 8), torch.ones(8, 7, dtype=torch.bool))]
    assert similarities(masked(lengths)).outputs == first.outputs


def test_a_model_with_one_block_has_nothing_to_compare():
    task = load_task(TINY)
    task.model = DigitsViT(dim=16, depth=1, heads=2).eval()
    with pytest.raises(CaptureError, match="at least two attention blocks"):
        similarities(task)


def test_the_record_is_json_under_the_papers_names():
    found = similarities(load_task(TINY))
    value = found.as_dict()
    assert (value["Z"], value["A"]) == (found.outputs, found.attention)
    assert set(value) == {"task", "sites", "Z", "A", "suggested"}
