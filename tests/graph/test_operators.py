"""The families of operators: torch has each member, and a larger family holds its parts."""

from __future__ import annotations

import pytest
import torch

from attnpass.graph import operators

FAMILIES = {k: v for k, v in vars(operators).items() if isinstance(v, frozenset)}

SPELLED = {"float", "half", "bfloat16"}
"""Methods of a tensor that a trace may name where it does not reach ATen."""


@pytest.mark.parametrize("name", FAMILIES)
def test_every_member_is_an_operator_of_torch(name):
    assert FAMILIES[name]
    for member in FAMILIES[name] - SPELLED:
        assert hasattr(torch.ops.aten, member), member


def test_larger_families_hold_their_parts():
    assert operators.REGROUPS < operators.VIEWS < operators.SHAPES
    assert operators.PIECES < operators.SHAPES
    assert not operators.CASTS & operators.SHAPES, "a cast is arithmetic"
    assert not operators.SOFTMAX & operators.SHAPES


def test_shapes_only_move_values():
    """Each member of SHAPES gives values of its operand and no others."""
    x = torch.arange(24.0).view(2, 3, 4)
    calls = {
        **dict.fromkeys(("view", "reshape", "_unsafe_view"), ([4, 6],)),
        **{"flatten": (), "unflatten": (2, [2, 2]), "unsqueeze": (0,), "squeeze": ()},
        **{"slice": (0, 0, 1), "select": (0, 0), "expand": ([2, 3, 4],)},
        **{"permute": ([2, 0, 1],), "transpose": (0, 1)},
        **dict.fromkeys(("contiguous", "clone", "alias", "detach"), ()),
    }
    assert set(calls) == operators.SHAPES
    for name, rest in calls.items():
        found = getattr(torch.ops.aten, name)(x, *rest)
        assert set(found.flatten().tolist()) <= set(x.flatten().tolist()), name
