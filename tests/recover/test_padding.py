"""Which rows a mask leaves: none but masks of padding, either order of axes."""

from __future__ import annotations

import torch

from attnpass.recover.distances import relative_error
from attnpass.recover.padding import (
    key_padding,
    padding_masks,
    rows_kept,
    select_rows,
    token_rows,
)


def test_padding_is_left_out_of_sequences_that_come_first():
    keep = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    keep[0, ..., 3:] = False
    got, want = (torch.randn(2, 5, 8) for _ in range(2))
    rows = [token_rows([keep], x) for x in (got, got.transpose(0, 1))]
    assert rows[1].shape == (5, 2, 1) and torch.equal(rows[1].transpose(0, 1), rows[0])
    by_hand = got - want
    by_hand[0, 3:] = 0
    expected = by_hand.square().sum() / (want.square().sum() - want[0, 3:].square().sum())
    first = relative_error(got.transpose(0, 1), want.transpose(0, 1), rows[1])
    torch.testing.assert_close(first, expected)
    other = keep.clone()
    other[1, ..., 4] = False
    assert token_rows([keep, other], got) is None, "the masks differ"


def test_a_mask_that_differs_by_row_or_head_is_none_of_padding():
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    assert key_padding(mask) is mask
    for other in (None, mask.expand(2, 1, 5, 5), mask.expand(2, 3, 1, 5), mask[:, 0]):
        assert key_padding(other) is None


def test_rows_that_are_kept_are_selected_after_the_prefix():
    keep = torch.tensor([[True, True, False, True], [True, False, True, True]])[:, None, None]
    rows = rows_kept(keep, prefix=1)
    assert rows.shape == (2, 3, 1) and rows_kept(None) is None
    x = torch.arange(6.0).view(2, 3, 1)
    assert select_rows(x, rows).flatten().tolist() == [0.0, 2.0, 4.0, 5.0]
    assert select_rows(x, rows[:1]).flatten().tolist() == [0.0, 2.0, 3.0, 5.0], "of all items"
    assert torch.equal(select_rows(x, None), x.flatten(0, 1))


def test_padding_inside_a_causal_mask_is_found():
    keep = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])[:, None, None]
    causal = torch.ones(5, 5).tril().bool()
    (found,) = padding_masks([keep & causal])
    assert torch.equal(found, keep)
    (left,) = padding_masks([keep.flip(-1) & causal])
    assert torch.equal(left, keep.flip(-1)), "padding on the left"
    both = padding_masks([causal[None, None], keep])
    assert len(both) == 1 and both[0] is keep, "a mask of padding alone decides"
    assert padding_masks([causal[None, None]]) == []
    other = padding_masks([keep, keep.flip(-1) & causal])
    assert len(other) == 2, "two sequences of one length, each with padding of its own"
    assert token_rows(other, torch.randn(2, 5, 8)) is None
    assert padding_masks([torch.zeros(2, 1, 5, 5), keep[0], torch.ones(2, 1, 4, 5).bool()]) == []


def test_tokens_on_one_axis_with_their_items_have_rows_too():
    keep = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])[:, None, None]
    x = torch.randn(2, 5, 8)
    rows = token_rows([keep], x.flatten(0, 1))
    assert rows.shape == (10, 1)
    assert torch.equal(rows.view(2, 5, 1), token_rows([keep], x))
    assert token_rows([keep], torch.randn(2, 8)) is None, "pooled"
    assert token_rows([keep[:1]], torch.randn(5, 8)) is None, "five items, or five tokens?"
    assert token_rows([keep, keep.flip(-1)], x.flatten(0, 1)) is None


def test_masks_that_fit_no_token_leave_all_rows():
    x = torch.randn(2, 5, 8)
    for shape in ((2, 1, 1, 4), (2, 1, 5, 5)):
        assert token_rows([torch.ones(shape).bool()], x) is None
    assert token_rows([torch.ones(2, 1, 1, 5)], x) is None, "of floats"
    assert token_rows([torch.ones(2, 1, 1, 5).bool()], x[0]) is None
    assert token_rows([torch.ones(1, 1, 1, 5).bool()], x).shape == (2, 5, 1)
