"""The part of a rewritten graph that one site computes, so that it can be trained alone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import fx, nn

from attnpass.matching import Region
from attnpass.rewrite.rewriter import rewritten
from attnpass.rewrite.writer import Writer


@dataclass(frozen=True)
class Branch:
    """What one site computes, from values of the original graph to its block's output.

    Attributes:
        graph: takes the values of ``reads``; returns the block's output (the attention's, where
            no block was found) and the kept positions that the form was given, or None.
        reads: nodes of the original graph, weights among them.
        target: the original node whose value ``graph`` stands for.
    """

    graph: fx.GraphModule
    reads: list[fx.Node]
    target: fx.Node


def branch(
    gm: fx.GraphModule, region: Region, module: nn.Module, weights: Collection[fx.Node]
) -> Branch:
    """The part of the rewritten graph that depends on ``module`` or on ``weights``.

    Everything else is read off the original graph: a branch is independent of what runs at the
    other sites.
    """
    w = rewritten(gm, [region], {region.site.name: module})
    w.finish()
    target = region.block_out or region.out.node
    call = next(n for n in w.graph.nodes if n.op == "call_module")
    moved = {w.new[n] for n in weights} | {call}
    for node in w.graph.nodes:
        if moved.intersection(node.all_input_nodes):
            moved.add(node)
    moved -= {w.new[n] for n in weights}
    return _extract(w, target, call, moved)


def _extract(w: Writer, target: fx.Node, call: fx.Node, moved: set[fx.Node]) -> Branch:
    """The graph that makes ``target``; a node that was there before and has not moved is read."""
    before = {new: old for old, new in w.new.items()}
    keep = call.args[-1] if isinstance(call.args[-1], fx.Node) else None
    ends = [w.new[target]] + ([keep] if keep is not None else [])
    needed: set[fx.Node] = set()
    reads: dict[fx.Node, fx.Node] = {}
    stack = list(ends)
    while stack:
        node = stack.pop()
        if node in needed or node in reads:
            continue
        if node in moved or node not in before:
            needed.add(node)
            stack.extend(node.all_input_nodes)
        else:
            reads[node] = before[node]
    graph, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in reads:
        copied[node] = graph.placeholder(node.name)
    for node in w.graph.nodes:
        if node in needed:
            copied[node] = graph.node_copy(node, copied.__getitem__)
    graph.output((copied[ends[0]], None if keep is None else copied[keep]))
    return Branch(fx.GraphModule(w.gm, graph), list(reads.values()), target)
