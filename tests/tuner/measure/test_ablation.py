"""The ablation of attention."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tuning import TINY

from attnpass import Capture
from attnpass.task import load_task
from attnpass.tuner.measure.ablation import AblationPlan, ReadWriteOnly


def test_ablation_touches_every_site_that_could_be_converted():
    task = load_task(TINY)
    capture = Capture(task.model).trace(*task.example)
    assert len(capture.use(AblationPlan.of(capture.sites))) == 3
    with torch.no_grad():
        assert bool(torch.isfinite(capture(*task.example)).all())


@pytest.mark.parametrize(("groups", "keys"), [(4, 5), (2, 5), (4, 3), (1, 7)])
def test_the_output_has_the_shape_of_attention(groups, keys):
    q, k = torch.randn(2, 4, 5, 8), torch.randn(2, groups, keys, 8)
    v = torch.randn(2, groups, keys, 6)
    assert ReadWriteOnly()(q, k, v).shape == (2, 4, 5, 6)


def test_a_site_where_softmax_alone_is_legal_stays():
    task = load_task(TINY)
    (site, *_) = Capture(task.model).trace(*task.example).sites
    no = site.legal["skipat"]
    bare = replace(site, legal=dict.fromkeys(site.legal, no) | {"softmax": None})
    plan = AblationPlan.of([site, bare])
    assert isinstance(plan.module(site), ReadWriteOnly) and plan.module(bare) is None
