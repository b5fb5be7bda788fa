"""Where every axis of every tensor comes from: proven from the graph, never guessed from sizes.

An axis is a product of factors, outermost first. A linear layer or convolution makes a
*feature* factor; tokens and batches are carried along; ``view`` splits and merges factors; so
``[B*H, T, d]`` still knows that its first axis is (token, feature) and its last is a feature.

Soundness: two axes with equal factors index the same things, position by position; an axis holds
tokens (or features) where its factors are of kind ``token`` (or ``feature``). Conditions:

1. A view keeps provenance only where the sizes of its factors multiply to the new sizes, exactly
   and symbolically (``factors.regroup``); else its axes are new and unknown.
2. A slice, split or gather of an axis gives a new axis; equal cuts of one axis give equal axes.
3. An operator without a rule gives axes that are new and unknown, unless it is pointwise.
4. Where several operands share an axis of the result, the result has the axis of the operand
   with the surest kind (``factors.PRIORITY``), among those of the result's size.

Not covered: equal factors of two operands that a pointwise operator aligns, where one of them was
permuted by values (sorted tokens).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from attnpass.graph import Opaque, number, op_name, operand, operators
from attnpass.matching.axis_rules import RULES, SAME_SHAPE, cut_axis, dimension, reduced
from attnpass.matching.factors import Axes, Axis, Provenance, fits, kinds, rank_of
from attnpass.torch_internals import expression


class AxisTracer(Provenance):
    """Walks a graph once, forward; ``axes[node]`` for every tensor node afterwards.

    Args:
        graph: in normal form. parameters: its weight placeholders.
        given: axes of other placeholders that are known from an earlier graph.
    """

    def __init__(
        self,
        graph: fx.Graph,
        parameters: set[fx.Node],
        given: Mapping[fx.Node, Axes] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        for node in graph.nodes:
            value = node.meta.get("val")
            if node.op == "placeholder" and isinstance(value, Tensor):
                kind = "param" if node in parameters else "input"
                self.axes[node] = given.get(node) or self.fresh(node, value, kind)
            elif node.op == "get_attr" and isinstance(value, Tensor):
                self.axes[node] = self.fresh(node, value, "param")
            elif node.op == "call_function":
                self._call(node, value)

    def _call(self, node: fx.Node, value: Any) -> None:
        if getattr(node.target, "__name__", "") == "getitem":
            parts = self.many.get(operand(node), [])
            if parts and isinstance(value, Tensor) and len(parts[0]) == value.dim():
                self.axes[node] = parts[number(node, 1)]
                return
        name = op_name(node)
        if isinstance(node.target, Opaque):
            self.many[node] = [self._carried(node, v) for v in value]
            return
        if isinstance(value, (list, tuple)):
            if name in operators.SPLITS and isinstance(node.args[0], fx.Node):
                self.many[node] = [self._split(node, v, i) for i, v in enumerate(value)]
            elif name in ("max", "min"):
                self.many[node] = [reduced(self, node, v) or () for v in value]
            return
        if not isinstance(value, Tensor):
            return
        rule = RULES.get(name)
        found = rule(self, node, value) if rule else None
        if found is None or len(found) != value.dim():
            plain = name in SAME_SHAPE or torch.Tag.pointwise in getattr(node.target, "tags", ())
            found = self._elementwise(node, value) if plain else self.fresh(node, value, "unknown")
        self.axes[node] = found

    def _carried(self, node: fx.Node, value: Any) -> Axes:
        """Axes of what a piece that is not opened gives: leading ones of its activation.

        A linear layer inside makes features; without one, only a single operand tells.
        """
        given = [x for x in node.all_input_nodes if x in self.axes]
        at = node.target.projected if isinstance(node.target, Opaque) else None
        moving = [x for x in given if not all(kinds(axis) <= {"param"} for axis in self.axes[x])]
        source = self.axes.get(operand(node, at), ()) if at is not None else ()
        if at is None and len(moving) == 1:
            source = self.axes[moving[0]]
        if not isinstance(value, Tensor):
            return ()
        made = self.fresh(node, value, "unknown" if at is None else "feature")
        if not source or len(source) != value.dim():
            return made
        last = source[-1] if at is None and fits(source[-1], value.shape[-1]) else made[-1]
        lead = zip(source[:-1], made[:-1], value.shape[:-1], strict=True)
        return (*(old if fits(old, size) else new for old, new, size in lead), last)

    def _elementwise(self, node: fx.Node, value: Tensor) -> Axes:
        """Axes of the operands, aligned at the right, the surer kind first, else fresh."""
        out: list[Axis] = []
        for i, new in enumerate(self.fresh(node, value, "unknown")):
            aligned = [
                axes[len(axes) - value.dim() + i]
                for axes in (self.axes.get(x, ()) for x in node.all_input_nodes)
                if len(axes) - value.dim() + i >= 0
            ]
            fitting = [a for a in aligned if a and fits(a, value.shape[i])]
            out.append(min(fitting, key=rank_of, default=new))
        return tuple(out)

    def _split(self, node: fx.Node, value: Tensor, i: int) -> Axes:
        source = self.source(node)
        if op_name(node) == "unbind":
            dim = dimension(node, 1, 0) % len(source)
            return source[:dim] + source[dim + 1 :]
        dim = dimension(node, 2, 0) % len(source)
        return cut_axis(source, dim, ("part", i, node.args[1]), expression(value.shape[dim]))
