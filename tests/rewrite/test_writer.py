"""A writer works on a copy; what it puts in place is also a later operand."""

from __future__ import annotations

import torch
from tracing import holders, only, traced

from attnpass.rewrite.writer import Writer

aten = torch.ops.aten


def graph():
    return traced(lambda x: (x.exp() + 1).view(-1).sin(), torch.ones(2, 3))


def test_the_original_stays_and_the_copy_computes_the_same():
    gm = graph()
    before = str(gm.graph)
    out = Writer(gm).finish()
    assert str(gm.graph) == before
    x = torch.randn(2, 3)
    assert torch.equal(out(x), gm(x))
    assert "aten.view" not in str(out.graph), "a form's result may have other strides"


def test_a_new_node_takes_the_place_of_an_old_one():
    gm = graph()
    w, old = Writer(gm), only(gm, "exp")
    with w.graph.inserting_before(w.read(old)):
        new = w.call(aten.tanh.default, w.read(holders(gm)[0]))
    w.instead(old, new)
    assert w.read(old) is new
    x = torch.randn(2, 3)
    torch.testing.assert_close(w.finish()(x), (x.tanh() + 1).view(-1).sin())


def test_sizes_are_numbers_or_are_read_off():
    fixed, dynamic = graph(), traced(lambda x: x.exp(), torch.ones(2, 3), mode="symbolic")
    assert Writer(fixed).sizes(only(fixed, "exp")) == [2, 3]
    w = Writer(dynamic)
    with w.graph.inserting_before(w.graph.output_node()):
        sizes = w.sizes(only(dynamic, "exp"))
    assert [n.target for n in sizes] == [aten.sym_size.int] * 2


def test_a_module_call_is_described_as_the_node_it_stands_for():
    gm = graph()
    w, old = Writer(gm), only(gm, "exp")
    w.read(old).meta["stack_trace"] = "somewhere"
    w.gm.add_module("form", torch.nn.Identity())
    with w.graph.inserting_before(w.read(old)):
        node = w.module("form", (w.read(holders(gm)[0]),), w.read(old))
    assert node.op == "call_module" and node.meta["stack_trace"] == "somewhere"
    assert "val" not in node.meta
