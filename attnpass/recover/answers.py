"""A captured model's answer to a batch: outputs, hidden states, and the padding masks it met.

Hidden states are the inputs of linear layers outside the attention sites (as in 1909.10351). They
are known by the weight that reads them, since a node has another name in every capture.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from torch import Tensor, fx

from attnpass.batch import Batch
from attnpass.capture import Capture, CapturedGraph, Layer, watched
from attnpass.graph import op_name
from attnpass.recover.padding import padding_masks
from attnpass.torch_internals import pytree

LINEAR = ("linear", "addmm", "mm")
"""Operators that multiply by a weight; ``addmm`` takes its offset first."""


class Answer(NamedTuple):
    """A model's answer to one batch.

    Attributes:
        outputs: the floating tensors that the model returns.
        hidden: hidden states by the path of the weight that reads them and the number of the
            read: ``layers.0.linear1.weight 1``.
        masks: what the masks of the forms of self-attention say of padding.
    """

    outputs: list[Tensor]
    hidden: dict[str, Tensor]
    masks: list[Tensor]


def answer(capture: Capture, batch: Batch, *, recomputed: bool = False) -> Answer:
    """Run a captured model on a batch under the plan in use.

    ``recomputed``: gradients compute activations a second time.
    """

    def wanted(graph: CapturedGraph, layer: Layer) -> set[str]:
        return {*_hidden_nodes(graph, layer), *_mask_nodes(layer)}

    out, layers = watched(capture, batch, wanted, recomputed=recomputed)
    hidden, masks, reads = dict[str, Tensor](), list[Tensor](), Counter[str]()
    for graph, layer, values in layers:
        masks += [values[name] for name in _mask_nodes(layer)]
        for name, weight in _hidden_nodes(graph, layer).items():
            reads[weight] += 1
            if name in values:
                hidden[f"{weight} {reads[weight]}"] = values[name]
    outputs = [
        x for x in pytree.tree_leaves(out) if isinstance(x, Tensor) and x.is_floating_point()
    ]
    return Answer(outputs, hidden, padding_masks(masks))


def _hidden_nodes(graph: CapturedGraph, layer: Layer) -> dict[str, str]:
    """The nodes that linear layers outside the sites read, with the first weight that does."""
    inside = {n for r in layer.regions for n in (*r.parameters, *r.output)}
    inputs = graph.normal.graph.find_nodes(op="placeholder")
    paths = {inputs[i]: path for path, i in layer.positions.items()}
    found: dict[str, str] = {}
    for node in graph.normal.graph.nodes:
        if node.op == "call_function" and op_name(node) in LINEAR:
            x, weight = node.args[op_name(node) == "addmm" :][:2]
            while weight.op == "call_function" and len(weight.all_input_nodes) == 1:
                weight = weight.all_input_nodes[0]  # a view's base
            if weight.op == "placeholder" and weight not in inside:
                found.setdefault(x.name, paths.get(weight, weight.name))
    return found


def _mask_nodes(layer: Layer) -> list[str]:
    """The nodes of the masks that a layer's forms of self-attention are given."""
    assert isinstance(layer.active, fx.GraphModule)
    calls = [
        node
        for node in layer.active.graph.find_nodes(op="call_module")
        if layer.regions[int(node.target.rpartition(".")[2])].site.kind == "self"
    ]
    return list(dict.fromkeys(n.args[-1].name for n in calls if isinstance(n.args[-1], fx.Node)))
