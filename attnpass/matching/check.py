"""Checks the stage ``matched``: regions have the properties that ``rewrite`` relies on."""

from __future__ import annotations

from torch import fx

from attnpass.graph import require, value
from attnpass.matching.layout import SHARED, Operand
from attnpass.matching.region import Region

STAGE = "matched"


def check_regions(graph: fx.Graph, regions: list[Region]) -> None:
    """Check the regions of a graph.

    Raises:
        CheckError: a promise does not hold.
    """
    there = set(graph.nodes)
    names = [r.site.name for r in regions]
    require(len(set(names)) == len(names), STAGE, "every site of a graph has a name of its own")
    for region in regions:
        for node in (region.anchor, *region.parameters, *region.output):
            require(node in there, STAGE, "a region's nodes are in the graph", node)
        for operand in (region.q, region.k, region.v, region.out, region.weights):
            if operand is not None:
                _check_layout(operand, there)
        if region.block_out is not None:
            _check_block(region, there)


def _check_layout(x: Operand, there: set[fx.Node]) -> None:
    require(x.node in there, STAGE, "a region's operands are in the graph", x.node)
    own = sorted(i for i in x.permutation if i != SHARED)
    whole = own == list(range(value(x.node).dim()))
    require(whole, STAGE, "a layout names every axis of its node once", x.node)
    length = len(x.permutation) == x.lead.count + 2
    require(length, STAGE, "a layout has its leading axes, rows and columns", x.node)


def _check_block(region: Region, there: set[fx.Node]) -> None:
    """From the attention's result to its block's output every node has one user."""
    node, end = region.out.node, region.block_out
    while node is not end:
        promise = "the nodes up to a block's output have one user"
        require(node in there and len(node.users) == 1, STAGE, promise, node)
        node = next(iter(node.users))


def marks(regions: list[Region]) -> dict[fx.Node, str]:
    """The nodes of each region, from its operands to its block's output, with its site's name."""
    found: dict[fx.Node, str] = {}
    for region in reversed(regions):
        operands = [x.node for x in (region.q, region.k, region.v) if x is not None]
        ends = set(operands or region.anchor.all_input_nodes)
        first, inside = min(ends), set[fx.Node]()
        stack = [region.anchor, region.out.node, region.block_out or region.out.node]
        while stack:
            node = stack.pop()
            if node not in inside:
                inside.add(node)
                behind = [] if node in ends else node.all_input_nodes
                stack.extend(x for x in behind if x in ends or x > first)
        found |= dict.fromkeys(inside, region.site.name)
    return found
