"""The record of a stage survives JSON."""

from __future__ import annotations

import json

from attnpass.recover.stage import Stage


def test_a_stage_is_the_same_after_json():
    stage = Stage("local", 3, 8, 1.5, [0.2], [(0, 0.5), (3, 0.25)], {"|a": 3}, {"|a": 0.25})
    assert Stage.of(json.loads(json.dumps(stage.as_dict()))) == stage


def test_a_new_stage_has_done_nothing():
    stage = Stage("global")
    assert (stage.steps, stage.total, stage.seconds) == (0, 0, 0.0)
    assert not (stage.losses or stage.looks or stage.kept or stage.best)
