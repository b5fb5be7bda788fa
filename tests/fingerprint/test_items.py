"""An item is the same wherever it stands, and however far its batch is padded."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from attnpass.fingerprint import batched_leaves, item_digests

IDS = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0], [5, 0, 6, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])


def digests(batch, count):
    return item_digests(batch, batched_leaves(batch, count))


def test_an_item_is_known_in_another_batch():
    images, mask = torch.rand(4, 3, 2, 2), torch.rand(4, 5) > 0.5
    found = digests((images, mask), 4)
    assert len(set(found)) == 4
    assert digests({"a": images[1:], "b": mask[1:]}, 3) == found[1:]
    assert set(digests((images, ~mask), 4)).isdisjoint(found), "all of an item counts"
    assert digests((images.double(), mask), 4)[0] != found[0]


def test_padding_does_not_count_where_a_mask_says_what_it_is():
    found = digests({"ids": IDS, "mask": MASK}, 3)
    wider = {"ids": F.pad(IDS, (0, 3)), "mask": F.pad(MASK, (0, 3))}
    assert digests(wider, 3) == found and len(set(found)) == 3
    before = {"ids": F.pad(IDS[:1], (2, 0)), "mask": F.pad(MASK[:1], (2, 0))}
    assert digests(before, 1) == found[:1]
    assert set(digests((F.pad(IDS, (0, 1)),), 3)).isdisjoint(digests((IDS,), 3))


def test_an_item_of_padding_alone_tells_nothing():
    ids = torch.cat([IDS, torch.zeros(1, 4).long()])
    mask = torch.cat([MASK, torch.zeros(1, 4).long()])
    assert digests((ids,), 4) == digests((IDS,), 3)
    assert digests((ids, mask), 4) == digests((IDS, MASK), 3)
    assert digests((torch.ones(2, 4),), 2) == []


def test_tensors_that_are_no_items_do_not_count_beside_such():
    places, bias = torch.arange(4)[None], torch.ones(7, 7).tril()
    assert digests((places, bias, IDS), 3) == digests((IDS,), 3)


def test_without_items_a_batch_is_one():
    time_first = IDS.T
    assert len(digests((time_first,), 3)) == 1
    assert digests((time_first,), 3) != digests((time_first + 1,), 3)
    assert digests((3,), 1) == []


@pytest.mark.parametrize(
    "odd",
    [
        torch.eye(3).to_sparse(),
        torch.ones(3, 2, device="meta"),
        torch.tensor(1.0),
        torch.empty(0, 2),
    ],
)
def test_other_tensors_stay_out(odd):
    assert digests((odd, IDS), 3) == digests((IDS,), 3)
    assert digests((odd,), 3) == []
