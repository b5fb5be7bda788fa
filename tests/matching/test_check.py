"""Regions are what a rewrite relies on, or the check says which promise is broken."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import Stack

import attnpass
from attnpass.errors import CheckError
from attnpass.matching.check import check_regions, marks


@pytest.fixture(scope="module")
def found():
    capture = attnpass.Capture(Stack(2).eval()).trace(torch.randn(2, 5, 24))
    graph = capture.graphs[0].matched
    return graph.normal.graph, graph.regions


def test_regions_of_the_matcher_pass(found):
    check_regions(*found)


def test_marks_hold_each_region_from_operands_to_block(found):
    graph, regions = found
    marked = marks(regions)
    for region in regions:
        inside = (region.anchor, region.q.node, region.out.node, region.block_out)
        assert {marked[node] for node in inside} == {region.site.name}
    assert set(marked) < set(graph.nodes)


def changed(regions, **what):
    return [replace(regions[0], **what), *regions[1:]]


def test_two_sites_of_one_name(found):
    graph, regions = found
    twin = replace(regions[1], site=replace(regions[1].site, name=regions[0].site.name))
    with pytest.raises(CheckError, match="a name of its own"):
        check_regions(graph, [regions[0], twin])


def test_a_node_of_another_graph(found):
    graph, regions = found
    other = torch.fx.Graph().placeholder("x")
    with pytest.raises(CheckError, match="a region's nodes are in the graph"):
        check_regions(graph, changed(regions, anchor=other))
    with pytest.raises(CheckError, match="a region's operands are in the graph"):
        check_regions(graph, changed(regions, q=replace(regions[0].q, node=other)))


def test_a_layout_that_loses_an_axis(found):
    graph, regions = found
    q = regions[0].q
    for permutation in (q.permutation[:-1], (*q.permutation[:-1], q.permutation[0])):
        with pytest.raises(CheckError, match="a layout names every axis of its node once"):
            check_regions(graph, changed(regions, q=replace(q, permutation=permutation)))
    lead = replace(q.lead, count=q.lead.count + 1)
    with pytest.raises(CheckError, match="leading axes, rows and columns"):
        check_regions(graph, changed(regions, q=replace(q, lead=lead)))


def test_a_block_whose_inside_is_read_elsewhere(found):
    graph, regions = found
    with graph.inserting_after(regions[0].out.node):
        reader = graph.call_function(torch.ops.aten.neg.default, (regions[0].out.node,))
    with pytest.raises(CheckError, match="up to a block's output have one user"):
        check_regions(graph, regions)
    graph.erase_node(reader)
