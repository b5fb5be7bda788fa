"""Each condition under which a kept sum W + delta is used: without it the sum is wrong."""

from __future__ import annotations

import pytest
import torch
from provers import mutated, numbered
from torch import Tensor

from attnpass.plan import Delta, delta


def ones(seed: int) -> Delta:
    found = Delta(torch.Size([3, 4]))
    with torch.no_grad():
        found.full.fill_(float(seed))
    return found


def gradients() -> Tensor:
    """The gradient that reaches the delta after a call without gradients."""
    added, weight = ones(1), torch.zeros(3, 4)
    with torch.no_grad():
        added(weight)
    out = added(weight)
    return torch.autograd.grad(out.sum(), added.full)[0] if out.requires_grad else torch.zeros(())


def inference_weights() -> Tensor:
    added = ones(1)
    with torch.inference_mode():
        weight = torch.zeros(3, 4)
        added(weight)
        weight.add_(5.0)
        return added(weight).clone()


def another_weight_at_the_address() -> Tensor:
    added, weight = ones(1), torch.zeros(3, 4)
    with torch.no_grad():
        added(weight)
        twin = weight.view(3, 4).transpose(0, 1)  # same address, same version
        return added_square(added, twin)


def added_square(added: Delta, twin: Tensor) -> Tensor:
    """The sum for a weight of another shape at the same address, by a delta of that shape."""
    with torch.no_grad():
        added.full.data = added.full.data.view(4, 3)
        return added(twin)


def written_weight() -> Tensor:
    added, weight = ones(1), torch.zeros(3, 4)
    with torch.no_grad():
        added(weight)
        weight.add_(5.0)
        return added(weight).clone()


CASES = {
    1: (
        gradients,
        "torch.is_grad_enabled() and any(x.requires_grad for x in (weight, *own))",
        "False",
        lambda: torch.ones(3, 4),
    ),
    2: (
        inference_weights,
        "any(x.is_inference() for x in (weight, *own))",
        "False",
        lambda: torch.full((3, 4), 6.0),
    ),
    3: (
        another_weight_at_the_address,
        "self._weight is not None and self._weight() is weight",
        "True",
        lambda: torch.ones(4, 3),
    ),
    4: (written_weight, "key != self._key", "False", lambda: torch.full((3, 4), 6.0)),
}


@pytest.mark.parametrize("condition", CASES)
def test_right_with_the_condition_and_wrong_without(condition):
    run, old, new, want = CASES[condition]
    torch.testing.assert_close(run(), want())
    with mutated("plan.delta", old, new):
        try:
            got = run()
        except RuntimeError:
            return
    assert got.shape != want().shape or not torch.equal(got, want())


def test_every_condition_has_a_case():
    assert numbered(delta.__doc__) == list(CASES)
