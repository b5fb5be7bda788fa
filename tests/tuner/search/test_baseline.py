"""The scores of the unchanged model and their split."""

from __future__ import annotations

import torch
from tuning import TASKS, opened

from attnpass.store import Store
from attnpass.tuner.search.baseline import measure_baseline


def test_pooled_scores_see_the_whole_split(tmp_path):
    with Store(tmp_path / "a.db") as store:
        found = measure_baseline(*opened(store, task=f"{TASKS}:retrieval"))
    assert found.selection.tolist() == [1.0] * 60 and sum(found.sizes) == 60


def test_a_set_of_one_batch_is_halved_by_its_items(tmp_path):
    with Store(tmp_path / "a.db") as store:
        found = measure_baseline(*opened(store, task=f"{TASKS}:one_batch"))
    assert found.sizes == [60] and found.split.crossed
    assert [len(found.half(which)) for which in (0, 1)] == [30, 30]
    assert found.half(0)[:2] == [0, 2]


def test_batches_are_halved_whole_and_the_first_outputs_kept(tmp_path):
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store)
        found = measure_baseline(inspection, session)
        again = measure_baseline(inspection, session)
    assert found.half(0) == [*range(10), *range(20, 30), *range(40, 50)]
    assert sorted(found.half(0) + found.half(1)) == list(range(60))
    assert found.reference_batches == [0, 1, 2, 3] and len(found.reference) == 4
    assert all(torch.equal(a, b) for a, b in zip(found.reference, again.reference, strict=True))
    assert torch.equal(found.scored, found.selection), "crossed: each item once"
