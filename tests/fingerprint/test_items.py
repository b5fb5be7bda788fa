"""An item is the same wherever it stands, and however far its batch is padded."""

from __future__ import annotations

import torch

from attnpass.fingerprint import item_digests

IDS = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0], [5, 0, 6, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])


def test_an_item_is_known_in_another_batch():
    images, mask = torch.rand(4, 3, 2, 2), torch.rand(4, 5) > 0.5
    found = item_digests((images, mask))
    assert len(set(found)) == 4
    assert item_digests({"a": images[1:], "b": ~mask[1:]}) == found[1:], "masks do not count"
    assert item_digests((images.double(), mask))[0] != found[0]


def test_padding_does_not_count():
    found = item_digests({"ids": IDS, "mask": MASK})
    wider = {
        "ids": torch.nn.functional.pad(IDS, (0, 3)),
        "mask": torch.nn.functional.pad(MASK, (0, 3)),
    }
    assert item_digests(wider)[1:] == found[1:] and len(set(found)) == 3


def test_what_is_all_mask_counts_where_there_is_nothing_else():
    assert len(set(item_digests((MASK,)))) == 3


def test_tensors_of_another_length_belong_to_no_item():
    assert item_digests((IDS, torch.arange(4)[None])) == item_digests((IDS,))
    assert item_digests((3,)) == []
