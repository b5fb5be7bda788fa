"""SkipAt against mathematics by hand."""

from __future__ import annotations

import pytest
import torch
from forms_by_hand import WIDTH, B, check, draw, keep_of, randomised, skipat_by_hand
from tolerance import assert_near

from attnpass.errors import OptionError
from attnpass.forms.skipat import SkipAt


@pytest.mark.parametrize("r", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("grid", "prefix", "causal"),
    [
        (None, 0, False),
        (None, 0, True),
        (None, 2, False),
        ((2, 4), 0, False),
        ((4, 2), 1, False),
        ((2, 4), 0, True),
    ],
)
def test_skipat(grid, prefix, causal, masked, kernel, r):
    module = randomised(SkipAt(WIDTH, r=r, kernel=kernel, grid=grid, prefix=prefix, causal=causal))
    tokens = 8 + prefix
    z = torch.randn(B, tokens, WIDTH, generator=draw()).requires_grad_()
    keep = keep_of((B, 1, 1, tokens)) if masked else None
    # a causal site is a sequence, whatever its grid
    plane = None if causal else grid

    def by_hand(p, z):
        return skipat_by_hand(p, z, keep, kernel=kernel, grid=plane, prefix=prefix, causal=causal)

    out = check(module, [z], by_hand, (keep,), terms=4.0)
    assert torch.equal(out[:, :prefix], z[:, :prefix])


def test_skipat_keep_of_one_row_for_all_items():
    module = randomised(SkipAt(WIDTH, r=1.0, kernel=3))
    z = torch.randn(B, 8, WIDTH, generator=draw()).requires_grad_()
    keep = keep_of((1, 1, 1, 8))

    def by_hand(p, z):
        return skipat_by_hand(p, z, keep, kernel=3, grid=None, prefix=0, causal=False)

    check(module, [z], by_hand, (keep,), terms=4.0)


def test_skipat_of_r_0_is_the_identity():
    module = SkipAt(WIDTH, r=0.0)
    assert not list(module.parameters())
    z = torch.randn(B, 5, WIDTH)
    assert torch.equal(module(z), z)


def test_skipat_start_is_reproducible_and_leaves_the_random_state():
    state = torch.get_rng_state()
    one, two, other = (SkipAt(WIDTH, r=1.0, seed=s) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    for name, x in one.state_dict().items():
        assert torch.equal(x, two.state_dict()[name])
        assert not torch.equal(x, other.state_dict()[name])


@pytest.mark.parametrize("causal", [False, True])
def test_skipat_means_over_tokens_are_float32(causal):
    # 400 tokens of 200 sum to 80000, beyond float16; their mean is not
    module = SkipAt(WIDTH, r=1.0, kernel=3, causal=causal)
    module.down.bias.data.fill_(200.0)
    z = torch.randn(1, 400, WIDTH, generator=draw())
    p = {n: x.detach().half().double() for n, x in module.named_parameters()}
    want = skipat_by_hand(p, z.half().double(), None, kernel=3, grid=None, prefix=0, causal=causal)
    assert_near(module.half()(z.half()), want, terms=2.0, compute=torch.float16)


@pytest.mark.parametrize(("r", "kernel"), [(-1.0, 5), (1.0, 4), (1.0, 0), (1.0, -3)])
def test_skipat_options(r, kernel):
    with pytest.raises(
        OptionError, match="expected (r from 0 to 8|kernel odd, from 1 to 31), got"
    ):
        SkipAt(WIDTH, r=r, kernel=kernel)
