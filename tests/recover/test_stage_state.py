"""A stage between two steps survives a file."""

from __future__ import annotations

import json
from dataclasses import fields

import torch

from attnpass.recover.stage import Stage
from attnpass.recover.stage_state import StageState


def some_state() -> StageState:
    values = [torch.full((2,), float(i)) for i in range(12)]
    return StageState(
        stage=Stage("local", 3, 8).as_dict(),
        parameters=values,
        optimiser=[{}, *({"step": x[0], "exp_avg": x + 1} for x in values[1:])],
        best=[0.5, None],
        best_values={0: [x + 2 for x in values]},
        last=[0.25, None],
        losses=[0.125],
        stale=2,
        looked=3,
        watched=1,
        first=0.5,
        scale=4.0,
        sizes=[0.1 * i for i in range(12)],
    )


def test_a_state_is_the_same_after_its_header_and_tensors():
    state = some_state()
    shuffled = dict(reversed(state.tensors().items()))
    again = StageState.of(json.loads(json.dumps(state.header())), shuffled)
    for field in fields(StageState):
        one, other = (getattr(x, field.name) for x in (state, again))
        if field.name in ("parameters", "optimiser", "best_values"):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
        else:
            assert one == other, field.name


def test_the_names_in_a_file():
    state = some_state()
    names = set(state.tensors())
    assert {"value|0", "value|11", "step|1", "exp_avg|11", "best|0|11"} <= names
    assert not {"step|0", "best|1|0"} & names
    assert set(state.header()) == {
        *("stage", "best", "stale", "looked", "watched", "first"),
        *("last", "losses", "scale", "sizes", "names"),
    }


def test_a_file_without_a_scale_and_names_is_read():
    header = some_state().header()
    del header["scale"], header["names"]
    state = StageState.of(header, some_state().tensors())
    assert state.scale is None and state.names is None


def test_parameters_of_another_order_are_put_in_place():
    state = some_state()
    found = state.in_order([[1, 0, 2], [*range(8, -1, -1)]])
    at = [1, 0, 2, *range(11, 2, -1)]
    assert [float(x[0]) for x in found.parameters] == at
    assert found.sizes == [0.1 * i for i in at]
    assert found.optimiser[1] == {} and float(found.optimiser[0]["step"]) == 1.0
    assert [float(x[0]) for x in found.best_values[0]] == [3.0, 2.0, 4.0]
