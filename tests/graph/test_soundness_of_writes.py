"""Each condition under which an in-place write is replaced: a program that is wrong without it."""

from __future__ import annotations

import importlib

import pytest
import torch
from provers import mutated, numbered
from torch import nn

import attnpass


class Program(nn.Module):
    """A program on ``x [4, 6]`` that writes in place; returns all that a reader may see."""

    def __init__(self, run):
        super().__init__()
        self.run, self.weight = run, nn.Parameter(torch.ones(6))
        self.register_buffer("count", torch.zeros(6))

    def forward(self, x):
        # a softmax, so that the graph is read at all
        return self.run(self, x, x @ x.T), x.softmax(-1)


def buffer_written(m, x, s):
    """The caller sees a buffer after the call."""
    m.count.add_(1.0)
    return m.count * 2 + x


def written_through_strides(m, x, s):
    """A transposed view that is spelled by its strides."""
    y = x * 2
    y.as_strided((6, 4), (1, 6))[0].add_(1.0)
    return y + 1


def transposed_in_place(m, x, s):
    """The base changes its shape between a view and the write through it."""
    y = x * 2
    a = y[0]
    y.t_()
    total = y.sum()
    a.add_(1.0)
    return a + total


def without_gradients(m, x, s):
    y = x * m.weight
    with torch.no_grad():
        y.mul_(3.0)
    return y * 1.0


DOUBLE = torch.full((6,), 1 / 3, dtype=torch.float64)
"""Added in place to float32, no functional operator does the same: such a write stays."""


def written_between(m, x, s):
    """A write that stays stands between the view and the write through it."""
    y = x * 2
    v = y[0]
    y.add_(DOUBLE)
    v.mul_(3.0)
    return y + 0


def compared_in_place(m, x, s):
    """In place a comparison gives floats."""
    y = x * 2
    y.gt_(0)
    return y + y


def strides_differ(m, x, s):
    """A dense copy of a tensor that was not: then a reshape copies."""
    y = (x * 2).transpose(0, 1).contiguous().transpose(0, 1)
    y.copy_(x)
    z = y.transpose(0, 1).reshape(-1)
    z.add_(DOUBLE[:1])
    return y + 0


PROGRAMS = {
    1: (buffer_written, "return made and self.base not in self.aliases", "return True"),
    2: (written_through_strides, "and all(map(_invertible, self.views))", ""),
    3: (transposed_in_place, "and not any(map(_reshapes, self._views()))", ""),
    4: (without_gradients, "and self.modes[self.base] == self.modes[self.node]", ""),
    5: (written_between, "and all(_replayable(v, self.base) for v in later)", ""),
    6: (
        compared_in_place,
        "new if (held.shape, held.dtype) == (own.shape, own.dtype)",
        "new if True",
    ),
    7: (strides_differ, "value if _layout(value) == _layout(self.base) else None", "value"),
}


def differences(run) -> list[float]:
    """Captured minus eager: output, softmax, the buffer afterwards, gradients; largest of each."""
    found = []
    for captured in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        program, x = Program(run).train(), torch.randn(4, 6)
        call = attnpass.Capture(program) if captured else program
        out, soft = call(x)
        if out.requires_grad:
            out.sum().backward()
        grad = torch.zeros(6) if program.weight.grad is None else program.weight.grad
        found.append([x.detach().double() for x in (out, soft, program.count, grad)])
    return [float((a - b).abs().max()) for a, b in zip(*found, strict=True)]


@pytest.mark.parametrize("condition", PROGRAMS)
def test_a_program_is_right_with_the_condition_and_wrong_without(condition):
    run, old, new = PROGRAMS[condition]
    assert max(differences(run)) == 0.0
    with mutated("graph.inplace", old, new):
        try:
            assert max(differences(run)) > 0.1
        except RuntimeError as error:  # or it cannot run at all
            assert "size" in str(error)


def test_every_condition_has_a_program():
    stated = numbered(importlib.import_module("attnpass.graph.inplace").__doc__)
    assert stated == list(PROGRAMS) == list(range(1, 8))
