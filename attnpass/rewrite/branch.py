"""Graph + regions + modules -> graph: each region becomes one call of its form's module.

The original graph is never touched: the rewrite works on a copy, which runs eagerly as it is, or
is traced once more into plain operators for a compiler. Shapes: B batch, H heads, T, S tokens.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import fx, nn

from attnpass.matching import Region
from attnpass.rewrite.rewriter import _Rewriter


@dataclass
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
    rewriter = _Rewriter(gm)
    rewriter.run([region], {region.site.name: module})
    target = region.block_out or region.out.node
    call = next(n for n in rewriter.graph.nodes if n.op == "call_module")
    moved = {rewriter.new[n] for n in weights} | {call}
    for node in rewriter.graph.nodes:
        if moved.intersection(node.all_input_nodes):
            moved.add(node)
    moved -= {rewriter.new[n] for n in weights}
    return _extract(rewriter, target, call, moved)


def _extract(rewriter: _Rewriter, target: fx.Node, call: fx.Node, moved: set[fx.Node]) -> Branch:
    """The graph that makes ``target``; what has not moved and was there before is read."""
    before = {new: old for old, new in rewriter.new.items()}
    keep = call.args[-1] if isinstance(call.args[-1], fx.Node) else None
    ends = [rewriter.new[target]] + ([keep] if keep is not None else [])
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
    for node in rewriter.graph.nodes:
        if node in needed:
            copied[node] = graph.node_copy(node, copied.__getitem__)
    graph.output((copied[ends[0]], None if keep is None else copied[keep]))
    return Branch(fx.GraphModule(rewriter.gm, graph), list(reads.values()), target)
