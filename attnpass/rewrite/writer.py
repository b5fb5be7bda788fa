"""A copy of a graph into which new nodes are written; the original stays as it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from attnpass.graph import draws, is_impure, value

aten = torch.ops.aten

CARRIED = ("stack_trace", "nn_module_stack", "source_fn_stack")
"""Metadata that a new node takes over from the node it stands for."""


class Writer:
    """The copy of one graph. It is also the machine that mask recipes are replayed on.

    Attributes:
        graph: the copy. gm: the module that runs it, with the submodules of the original.
        new: nodes of the original to those of the copy, or to whatever took their place.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self.new: dict[fx.Node, fx.Node] = {}
        self.graph = fx.Graph()
        result = self.graph.graph_copy(gm.graph, self.new)
        self.graph.output(result)
        self.gm = fx.GraphModule(gm, self.graph)
        self.gm.meta.update(gm.meta)

    def call(self, operator: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """One new node at the current insertion point."""
        return self.graph.call_function(operator, args, kwargs)

    def read(self, node: fx.Node) -> fx.Node:
        """The copy of a node of the original graph."""
        return self.new[node]

    def sizes(self, node: fx.Node) -> list[Any]:
        """The sizes of a node of the original graph: numbers, or nodes that read them off."""
        return [
            s if isinstance(s, int) else self.call(aten.sym_size.int, self.new[node], i)
            for i, s in enumerate(value(node).shape)
        ]

    def instead(self, node: fx.Node, new: fx.Node) -> None:
        """``new`` takes the place of a node of the original graph, also as a later operand."""
        self.new[node].replace_all_uses_with(new)
        self.new[node] = new

    def module(self, target: str, args: tuple[Any, ...], like: fx.Node) -> fx.Node:
        """A call of a submodule, described as the node ``like`` of the copy is."""
        node = self.graph.call_module(target, args)
        for key in CARRIED:
            if key in like.meta:
                node.meta[key] = like.meta[key]
        return node

    def finish(self) -> fx.GraphModule:
        """The copy without dead code, ready to run."""
        for node in self.graph.find_nodes(op="call_function", target=aten.view.default):
            node.target = aten.reshape.default  # a form's result may have other strides
        unused = {new for old, new in self.new.items() if draws(old) and not old.users}
        self.graph.eliminate_dead_code(is_impure_node=lambda n: n in unused or is_impure(n))
        self.graph.lint()
        self.gm.recompile()
        return self.gm
