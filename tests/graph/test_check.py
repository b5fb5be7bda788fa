"""The normal form is normal, or the check says where it is not."""

from __future__ import annotations

import pytest
import torch
from models import Attention, mul_after

import attnpass
from attnpass.errors import CheckError
from attnpass.graph import check_normal_form
from attnpass.torch_internals import make_fx


def normal():
    model = Attention(mul_after).eval()
    capture = attnpass.Capture(model).trace(torch.randn(2, 5, 24))
    return capture.graphs[0].normal


def test_a_normal_form_passes():
    gm = normal()
    check_normal_form(gm, gm)


def test_an_operator_without_a_result_passes():
    class Checked(Attention):
        def forward(self, x):
            torch._assert_async(x.abs().amax() < 1e3, "expected small inputs")
            return super().forward(x)

    capture = attnpass.Capture(Checked(mul_after).eval()).trace(torch.randn(2, 5, 24))
    gm = capture.graphs[0].normal
    assert any("_assert_async" in str(n.target) for n in gm.graph.nodes)
    check_normal_form(gm, gm)


def test_a_missing_input_is_told():
    gm, other = normal(), make_fx(lambda x: x + 1, torch.ones(2))
    with pytest.raises(CheckError, match="the inputs are those of Dynamo's graph"):
        check_normal_form(other, gm)


def test_a_call_of_a_python_function_is_told():
    gm = normal()
    node = next(n for n in gm.graph.nodes if "softmax" in str(n.target))
    node.target = torch.nn.functional.softmax
    with pytest.raises(CheckError, match="every call is of an ATen overload"):
        check_normal_form(gm, gm)


def test_a_value_that_is_not_known_is_told():
    gm = normal()
    del next(n for n in gm.graph.nodes if "softmax" in str(n.target)).meta["val"]
    with pytest.raises(CheckError, match="has a fake value"):
        check_normal_form(gm, gm)


def test_a_module_call_is_told():
    gm = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.ReLU()))
    with pytest.raises(CheckError, match="every node is an input, a constant, a call"):
        check_normal_form(gm, gm)
