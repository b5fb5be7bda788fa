"""A pretrained model as its package ships it: its data, its attention."""

from __future__ import annotations

import pytest
import torch
from sceptr import variant
from scripts import receptors

import attnpass


def test_a_receptor_is_asked_for_by_a_changed_chain():
    rows = receptors.receptors(50, 0)
    assert rows == receptors.receptors(50, 0) != receptors.receptors(50, 1)
    for old, new in zip(rows, receptors.changed(rows, 1), strict=True):
        assert new.keys() == {"TRBV", "CDR3B"} and new["TRBV"] == old["TRBV"]
        pairs = list(zip(old["CDR3B"], new["CDR3B"], strict=True))
        assert sum(a != b for a, b in pairs) == receptors.CHANGED
        assert pairs[0] == ("C", "C") and pairs[-1] == ("F", "F")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_task_is_the_packages_own_model_and_batch():
    task = receptors.task()
    (example,) = task.example
    assert example.shape[0] == receptors.BATCH and example.shape[2] == 4
    own = variant.default()._bert.eval()
    with torch.no_grad():
        want = own.get_vector_representations_of(example)
        assert torch.equal(task.model(example), want)
        outputs = torch.cat([task.model(*inputs) for inputs, _ in task.validation])
    score = task.score(outputs, torch.cat([y for _, y in task.validation]))
    assert len(score) == receptors.JUDGED and 0.5 < float(score.mean()) < 0.99
    sites = attnpass.Capture(task.model).trace(*task.example).sites
    assert len(sites) == 3 and all(s.mask == {"padding"} for s in sites)
