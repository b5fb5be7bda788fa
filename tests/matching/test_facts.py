"""The facts of a graph: provenance, written tensors, leading axes."""

from __future__ import annotations

import pytest
import torch
from tracing import holders, only, traced

from attnpass.graph import written
from attnpass.matching.facts import GraphFacts
from attnpass.matching.refuse import Refuse


def added(x, y):
    """The last input is written, and read through a view."""
    view = y[0]
    y.add_(1.0)
    return x * 2 + view


def facts_of(function, *inputs, weights=0):
    gm = traced(function, *inputs)
    given = holders(gm)
    return gm, GraphFacts.of(gm.graph, set(given[len(given) - weights :]))


def test_facts_are_those_of_their_provers():
    gm, facts = facts_of(added, torch.ones(3, 4), torch.ones(3, 4), weights=1)
    x, y = holders(gm)
    assert facts.written == written(gm.graph) and y in facts.written and x not in facts.written
    assert facts.parameters == {y}
    assert facts.axes[y][0][0].kind == "param" and facts.axes[x][0][0].kind == "input"


def test_a_written_operand_is_refused_with_the_condition_of_the_caller():
    gm, facts = facts_of(added, torch.ones(3, 4), torch.ones(3, 4))
    x, y = holders(gm)
    reader = only(gm, "add")
    facts.refuse_written(x, reader, "logits 6")
    with pytest.raises(Refuse) as refused:
        facts.refuse_written(y, reader, "logits 6")
    assert (refused.value.condition, refused.value.code) == ("logits 6", "MUTATED_ALIAS")


def test_it_looks_at_all_that_a_tensor_is_computed_from():
    def later(x, y):
        y.add_(1.0)
        return (y * 2).exp() + x

    gm, facts = facts_of(later, torch.ones(3), torch.ones(3))
    with pytest.raises(Refuse):
        facts.refuse_written(only(gm, "exp"), only(gm, "add"), "logits 6")


def test_what_is_written_after_it_was_read_does_not_matter():
    def counted(x, y):
        keep = (y * 2).exp()
        y.add_(1.0)
        return keep + x

    gm, facts = facts_of(counted, torch.ones(3), torch.ones(3))
    facts.refuse_written(only(gm, "exp"), only(gm, "add"), "logits 6")


def test_what_is_written_before_it_is_read_is_refused():
    """Also where it was made by an operator before the write."""

    def counted(x, y):
        keep = y.view(-1)
        y.add_(1.0)
        return keep + x

    gm, facts = facts_of(counted, torch.ones(3), torch.ones(3))
    with pytest.raises(Refuse):
        facts.refuse_written(only(gm, "view"), only(gm, "add"), "logits 6")


def test_the_lead_is_read_from_the_axes_that_are_named():
    def heads(x, w):
        return (x @ w).unflatten(-1, (3, 4)).transpose(1, 2)

    gm, facts = facts_of(heads, torch.ones(2, 5, 6), torch.ones(6, 12), weights=1)
    node = only(gm, "transpose")
    lead = facts.lead(node, range(2))
    assert (lead.count, lead.heads, lead.paired) == (2, 3, True)


def test_a_write_before_the_first_reader_does_not_matter():
    def filled(cache, new, q):
        cache[:, :2].copy_(new)
        return q @ cache[:, :3].mT

    gm, facts = facts_of(filled, torch.zeros(2, 4, 5), torch.ones(2, 2, 5), torch.ones(2, 3, 5))
    product = only(gm, "matmul")
    facts.refuse_changed(holders(gm)[0], product, "reader 4")


def test_a_write_between_the_reader_and_the_result_is_refused():
    def late(cache, q):
        keys = cache[:, :3] * 2.0
        cache.add_(1.0)
        return q @ keys.mT

    gm, facts = facts_of(late, torch.zeros(2, 4, 5), torch.ones(2, 3, 5))
    product = only(gm, "matmul")
    with pytest.raises(Refuse) as refused:
        facts.refuse_changed(holders(gm)[0], product, "reader 4")
    assert refused.value.condition == "reader 4" and refused.value.node < product


def test_a_write_behind_the_result_does_not_matter():
    def after(cache, q):
        out = q @ cache.mT
        cache.add_(1.0)
        return out

    gm, facts = facts_of(after, torch.zeros(2, 4, 5), torch.ones(2, 3, 5))
    facts.refuse_changed(holders(gm)[0], only(gm, "matmul"), "reader 4")
