"""Plain calls of the operators reach the kernels without Python; all others take its way."""

from __future__ import annotations

import pytest
import torch

from attnpass.errors import ArgumentError
from attnpass.kernels import activations, dispatch, ops  # noqa: F401
from attnpass.kernels.cpu import launch

TILE = [16, 32, 4, 2, 1, 0, 0]


class Seen(Exception):
    """Python was asked."""


@pytest.fixture(autouse=True)
def python(monkeypatch):
    """Every call that reaches Python raises ``Seen``."""
    why = launch.refusal("pointwise")
    if why is not None:
        pytest.skip(why)

    def raises(*given):
        raise Seen

    for name in ("pointwise", "softmax"):
        monkeypatch.setattr(dispatch, name, raises)


def inputs(dtype=torch.float32, keys=2):
    """Queries ``[2, 4, 9, 8]``, keys and values."""
    return [torch.randn(2, n, 9, 8).to(dtype) for n in (4, keys, keys)]


def softmax(q, k, v, bias=None, keep=None, scale=0.3, tile=TILE, grad_tile=TILE):
    return torch.ops.attnpass.softmax(q, k, v, bias, keep, scale, False, tile, grad_tile)


def pointwise(q, k, v, tau=None, offset=None, gain=None, h="relu", slopes=None, window=0):
    given = (q, k, v, None, None, tau, offset, gain, 0.3, h, False, TILE, TILE, slopes)
    return torch.ops.attnpass.pointwise(*given, None, window)


PLAIN = {
    "float32": lambda: softmax(*inputs()),
    "bfloat16": lambda: softmax(*inputs(torch.bfloat16)),
    "float16": lambda: softmax(*inputs(torch.float16)),
    "a bias per key": lambda: softmax(*inputs(), bias=torch.randn(9)),
    "a mask of an item": lambda: softmax(*inputs(), keep=torch.ones(2, 1, 1, 9) > 0),
    "a short tile": lambda: softmax(*inputs(), tile=TILE[:5]),
    "strided queries": lambda: softmax(torch.randn(2, 9, 4, 8).transpose(1, 2), *inputs()[1:]),
    "no gradient wanted": lambda: softmax(*(x.requires_grad_() for x in inputs())),
    "terms": lambda: pointwise(*inputs(), torch.ones(4), torch.ones(4, 1, 1), torch.ones(1)),
    **{h: lambda h=h: pointwise(*inputs(), h=h) for h in activations.H},
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_call_needs_no_python(name):
    with torch.no_grad():
        PLAIN[name]()
    with torch.inference_mode():
        PLAIN[name]()


OTHERS = {
    "float64": lambda: softmax(*inputs(torch.float64)),
    "a bias in float64": lambda: softmax(*inputs(), bias=torch.randn(9).double()),
    "a scale of 0": lambda: softmax(*inputs(), scale=0.0),
    "a very short tile": lambda: softmax(*inputs(), tile=TILE[:2]),
    "slopes": lambda: pointwise(*inputs(), slopes=torch.ones(4)),
    "a window": lambda: pointwise(*inputs(), window=3),
    "h of a GPU": lambda: pointwise(*inputs(), h="sigmoid_tanh"),
    "a gradient": lambda: softmax(*(x.requires_grad_() for x in inputs())),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_call_reaches_python(name):
    if name == "a gradient":  # what Python adds is the formula; the forward needs it no more
        out, lse = OTHERS[name]()
        assert "softmax" in type(out.grad_fn).__name__ and lse.requires_grad
        return
    with torch.no_grad(), pytest.raises(Seen):
        OTHERS[name]()


FAULTS = {
    "q with four axes": lambda q, k, v: softmax(q[0], k, v),
    "v in torch.float32": lambda q, k, v: softmax(q, k, v.bfloat16()),
    "bias that broadcasts": lambda q, k, v: softmax(q, k, v, bias=torch.zeros(4)),
    "keep in torch.bool": lambda q, k, v: softmax(q, k, v, keep=torch.zeros(9)),
    "divides the 4 query heads": lambda q, k, v: softmax(
        q, *(x.repeat(1, 2, 1, 1)[:, :3] for x in (k, v))
    ),
    "a tile of at most": lambda q, k, v: softmax(q, k, v, tile=[*TILE, 1]),
    "block_m 1 to": lambda q, k, v: softmax(q, k, v, grad_tile=[0, *TILE[1:]]),
    "descriptors 0 or 1": lambda q, k, v: softmax(q, k, v, tile=[*TILE[:5], 2, 0]),
    "scale from": lambda q, k, v: softmax(q, k, v, scale=float("inf")),
    "with its memory": lambda q, k, v: (k.untyped_storage().resize_(0), softmax(q, k, v)),
    "tau [4]": lambda q, k, v: pointwise(q, k, v, torch.ones(3)),
    "offset that broadcasts": lambda q, k, v: pointwise(q, k, v, None, torch.ones(5, 1, 1)),
    "h in": lambda q, k, v: pointwise(q, k, v, h="softmax"),
}


@pytest.mark.parametrize("expected", FAULTS)
def test_a_fault_is_said_by_python(expected):
    with torch.no_grad(), pytest.raises(ArgumentError) as raised:
        FAULTS[expected](*inputs())
    assert f"expected {expected}" in str(raised.value) or expected in str(raised.value)


def test_forward_mode_is_refused():
    q, k, v = inputs()
    with pytest.raises(ArgumentError, match="forward-mode"):
        torch.func.jvp(lambda x: softmax(x, k, v)[0], (q,), (torch.ones_like(q),))


def test_outputs_are_those_of_pythons_way(monkeypatch):
    """The same bits, shapes, strides and dtypes."""
    given, keep = inputs(torch.bfloat16), torch.rand(2, 1, 9, 9) < 0.7
    with torch.no_grad():
        direct = softmax(*given, keep=keep)
        monkeypatch.undo()
        launch.library("pointwise").serve(False)
        try:
            python = softmax(*given, keep=keep)
        finally:
            launch.library("pointwise").serve(True)
    for x, y in zip(direct, python, strict=True):
        assert torch.equal(x, y) and x.dtype == y.dtype
        assert x.shape == y.shape and x.stride() == y.stride()


@pytest.mark.parametrize("empty", ["items", "heads", "rows"])
def test_an_output_without_elements_has_the_strides_that_a_trace_promises(empty):
    b, h, t = (0 if axis == empty else n for axis, n in [("items", 2), ("heads", 4), ("rows", 9)])
    given = torch.randn(b, h, t, 8), *(torch.randn(b, h, 9, 8) for _ in "kv")
    mode = torch._subclasses.FakeTensorMode()
    for call in (softmax, lambda *given: (pointwise(*given),)):
        with torch.no_grad():
            real = call(*given)[0]
            with mode:
                fake = call(*(mode.from_tensor(x) for x in given))[0]
        assert real.shape == fake.shape and real.stride() == fake.stride()
