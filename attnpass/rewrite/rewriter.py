"""Graph + regions + modules -> graph: each region becomes one call of its form's module.

The original graph is never touched: the rewrite works on a copy, which runs eagerly as it is, or
is traced once more into plain operators for a compiler. Shapes: B batch, H heads, T, S tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from attnpass.forms import SkipAt, SoftmaxWeights, Weights
from attnpass.graph import is_impure
from attnpass.matching import (
    ABOVE,
    FILL,
    FIRST_HEAD,
    SHARED,
    FirstOf,
    Lead,
    Like,
    Operand,
    Placed,
    Recipe,
    Region,
    recipe_shape,
    replayed,
)

FORMS_ATTRIBUTE = "attnpass_forms"
"""The submodule of a rewritten graph that holds the forms, keyed by position."""

aten = torch.ops.aten


def rewrite(
    gm: fx.GraphModule, regions: list[Region], modules: Mapping[str, nn.Module]
) -> fx.GraphModule:
    """A copy of ``gm`` in which every region named in ``modules`` runs its module.

    A module that nothing legal uses must not be passed: it would be dropped as dead code.
    """
    return _Rewriter(gm).run(regions, modules)


class _Rewriter:
    def __init__(self, gm: fx.GraphModule) -> None:
        self.new: dict[fx.Node, fx.Node] = {}
        self.graph = fx.Graph()
        result = self.graph.graph_copy(gm.graph, self.new)
        self.graph.output(result)
        self.gm = fx.GraphModule(gm, self.graph)
        self.gm.meta.update(gm.meta)

    def run(self, regions: list[Region], modules: Mapping[str, nn.Module]) -> fx.GraphModule:
        forms = nn.ModuleDict()
        self.gm.add_module(FORMS_ATTRIBUTE, forms)
        for i, region in enumerate(regions):
            module = modules.get(region.site.name)
            if module is None:
                continue
            forms[str(i)] = module
            target = f"{FORMS_ATTRIBUTE}.{i}"
            if isinstance(module, SkipAt):
                self._skip(region, target)
            elif isinstance(module, (Weights, SoftmaxWeights)):
                self._swap(region, target)
            else:
                self._replace(region, target)
        for node in self.graph.find_nodes(op="call_function", target=aten.view.default):
            node.target = aten.reshape.default  # what a form returns may have other strides
        self.graph.eliminate_dead_code(is_impure_node=is_impure)
        self.graph.lint()
        self.gm.recompile()
        return self.gm

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """One new node at the current insertion point."""
        return self.graph.call_function(target, args, kwargs)

    def _replace(self, region: Region, target: str) -> None:
        old = self.new[region.out.node]
        with self.graph.inserting_before(old):
            q, k, v = (self._operand(x) for x in (region.q, region.k, region.v))
            kinds = {x.node.meta["val"].dtype for x in (region.q, region.k, region.v)}
            wide = functools.reduce(torch.promote_types, kinds)
            if len(kinds) > 1:
                q, k, v = (self.call(aten.to.dtype, x, wide) for x in (q, k, v))
            if region.logits.tempers and region.logits.scale != 1:
                q = self.call(aten.mul.Tensor, q, region.logits.scale)
            for factor, inverse in region.logits.tempers:
                op = aten.div.Tensor if inverse else aten.mul.Tensor
                q = self.call(op, q, self._mask(factor))
            keep = self._all(region.logits.keeps, aten.bitwise_and.Tensor)
            bias = self._all(region.logits.biases, aten.add.Tensor)
            out = self.graph.call_module(target, (q, k, v, bias, keep))
            self._stamp(out, old)
            out = self._undo(out, region.out, region.v, wide)
        self._instead(region.out.node, out)

    def _swap(self, region: Region, target: str) -> None:
        """Only the softmax node changes: logits in, weights out."""
        assert region.weights is not None
        old = self.new[region.weights.node]
        logits = region.weights.node.args[0]
        assert isinstance(logits, fx.Node)
        operand = replace(region.weights, node=logits)
        with self.graph.inserting_before(old):
            x = self._operand(operand)
            keep = None  # softmax in its own place needs none
            if region.site.mixed:
                keep = self.call(aten.gt.Scalar, x, FILL)
            elif not region.site.sink:
                keep = self._all(region.logits.keeps, aten.bitwise_and.Tensor)
            out = self.graph.call_module(target, (x, keep))
            self._stamp(out, old)
            wide = torch.promote_types(logits.meta["val"].dtype, torch.float32)
            out = self._undo(out, region.weights, operand, wide)
        self._instead(region.weights.node, out)

    def _skip(self, region: Region, target: str) -> None:
        assert region.block_out is not None and region.previous is not None
        assert region.previous.block_out is not None
        old = self.new[region.block_out]
        with self.graph.inserting_before(old):
            keep = self._all(region.logits.keeps, aten.bitwise_and.Tensor)
            source = self.new[region.previous.block_out]
            out = self.graph.call_module(target, (source, keep))
            self._stamp(out, old)
        self._instead(region.block_out, out)

    def _instead(self, node: fx.Node, new: fx.Node) -> None:
        """``new`` takes the place of a node of the original graph, also as a later operand."""
        self.new[node].replace_all_uses_with(new)
        self.new[node] = new

    @staticmethod
    def _stamp(node: fx.Node, like: fx.Node) -> None:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack"):
            if key in like.meta:
                node.meta[key] = like.meta[key]

    def _operand(self, operand: Operand) -> fx.Node:
        """``[B, H, rows, columns]``."""
        x, p, lead = self.new[operand.node], operand.permutation, operand.lead
        own = [i for i in p if i != SHARED]
        if own != list(range(len(own))):
            x = self.call(aten.permute.default, x, own)
        for at in (i for i, axis in enumerate(p) if axis == SHARED):
            x = self.call(aten.unsqueeze.default, x, at)
        return self._canonical(x, lead)

    def _canonical(self, x: fx.Node, lead: Lead) -> fx.Node:
        """Leading axes (in order) merged to batch and heads."""
        if lead.count == 0:
            return self.call(aten.unsqueeze.default, self.call(aten.unsqueeze.default, x, 0), 0)
        if lead.count == 1:
            if lead.heads == 1:
                return self.call(aten.unsqueeze.default, x, 1)
            return self.call(aten.unflatten.int, x, 0, [-1, lead.heads])
        if lead.split >= 0:
            x = self.call(aten.unflatten.int, x, lead.split, [-1, lead.heads])
            x = self.call(aten.permute.default, x, _heads_last(lead))
            return self.call(aten.flatten.using_ints, x, 0, lead.count - 1)
        if lead.paired:
            return (
                x if lead.count == 2 else self.call(aten.flatten.using_ints, x, 0, lead.count - 2)
            )
        return self.call(
            aten.unsqueeze.default, self.call(aten.flatten.using_ints, x, 0, lead.count - 1), 1
        )

    def _undo(self, out: fx.Node, target: Operand, source: Operand, dtype: torch.dtype) -> fx.Node:
        """From ``[B, H, T, dv]`` back to the layout and dtype of the replaced node.

        ``source`` is an operand with the same leading axes, from which sizes are read; ``dtype``
        is what ``out`` has.
        """
        lead, p = target.lead, target.permutation
        like = target.node.meta["val"]
        if lead.count == 0:
            out = self.call(aten.squeeze.dims, out, [0, 1])
        elif lead.count == 1:
            out = self.call(aten.flatten.using_ints, out, 0, 1)
        elif lead.split >= 0:
            shape = [like.shape[i] for i in p[: lead.count]]
            own = shape[lead.split]
            shape[lead.split] = own // lead.heads if isinstance(own, int) else own
            out = self.call(aten.unflatten.int, out, 0, self._sizes(shape, source))
            order = _heads_last(lead)
            back = [order.index(i) for i in range(len(order))]
            out = self.call(aten.permute.default, out, back)
            out = self.call(aten.flatten.using_ints, out, lead.split, lead.split + 1)
        elif lead.count > 2 or not lead.paired:
            if not lead.paired:
                out = self.call(aten.squeeze.dim, out, 1)
            batch = lead.count - 1 if lead.paired else lead.count
            shape = [like.shape[i] for i in p[:batch]]
            out = self.call(aten.unflatten.int, out, 0, self._sizes(shape, source))
        if p != tuple(range(len(p))):
            inverse = [p.index(i) for i in range(len(p))]
            out = self.call(aten.permute.default, out, inverse)
        return out if dtype == like.dtype else self.call(aten.to.dtype, out, like.dtype)

    def _sizes(self, shape: list[Any], source: Operand) -> list[Any]:
        """Sizes as numbers where known, one -1, else read off ``source``."""
        unknown = [i for i, s in enumerate(shape) if not isinstance(s, int)]
        if len(unknown) <= 1:
            return [-1 if i in unknown else s for i, s in enumerate(shape)]
        value, at = self.new[source.node], source.permutation
        return [self.call(aten.sym_size.int, value, at[i]) for i in range(len(shape))]

    def _all(self, placed: list[Placed], combine: Any) -> fx.Node | None:
        """All masks of a kind combined, broadcastable to ``[B, H, T, S]``, or None."""
        out: fx.Node | None = None
        for item in placed:
            x = self._mask(item)
            out = x if out is None else self.call(combine, out, x)
        return out

    def _mask(self, placed: Placed) -> fx.Node:
        """A recipe rebuilt and lifted to four axes that broadcast to ``[B, H, T, S]``."""
        x, rank = self._rebuild(placed.recipe)
        lead = placed.lead
        canonical = any(isinstance(s, FirstOf) for s in placed.recipe.steps)
        if canonical or rank <= 2 or (lead.count == 2 and lead.paired and lead.split < 0):
            return self._lifted(x, rank, 4)
        x = self._lifted(x, rank, lead.count + 2)
        if rank < lead.count + 2 or self._broadcasts(placed.recipe, lead.count):
            if lead.count == 1:
                return self.call(aten.unsqueeze.default, x, 0)
        elif lead.count > 1:
            x = self._expanded(x, placed)
        return self._canonical(x, lead)

    def _lifted(self, x: fx.Node, rank: int, to: int) -> fx.Node:
        for _ in range(to - rank):
            x = self.call(aten.unsqueeze.default, x, 0)
        return x

    def _broadcasts(self, recipe: Recipe, count: int) -> bool:
        shape = recipe_shape(recipe)
        return shape is not None and all(isinstance(s, int) and s == 1 for s in shape[:count])

    def _expanded(self, x: fx.Node, placed: Placed) -> fx.Node:
        """Leading axes expanded so that they can be merged; the head axis stays as it is."""
        lead = placed.lead
        batch = lead.count - 1 if lead.paired and lead.split < 0 else lead.count
        at, shape = self.new[placed.at], placed.at.meta["val"].shape
        wanted = [
            s if isinstance(s, int) else self.call(aten.sym_size.int, at, i)
            for i, s in enumerate(shape[:batch])
        ]
        return self.call(aten.expand.default, x, [*wanted, *([-1] * (lead.count + 2 - batch))])

    def _shape(self, node: fx.Node) -> list[Any]:
        """The sizes of a node of the original graph."""
        return [
            s if isinstance(s, int) else self.call(aten.sym_size.int, self.new[node], i)
            for i, s in enumerate(node.meta["val"].shape)
        ]

    def _rebuild(self, recipe: Recipe) -> tuple[fx.Node, int]:
        """The recipe's node and its rank."""
        x, rank = self.new[recipe.base], recipe.base.meta["val"].dim()
        plain = recipe.negate or recipe.base.meta["val"].dtype == torch.bool
        if recipe.negate:
            x = self.call(aten.logical_not.default, x)
        for step in recipe.steps:
            if step == ABOVE:
                x = self.call(aten.gt.Scalar, x, FILL)
            elif isinstance(step, torch.dtype):
                x = x if plain else self.call(aten.to.dtype, x, step)
            elif isinstance(step, FirstOf):
                x = self.call(aten.unflatten.int, x, 0, [-1, step.heads])
                x, rank = self.call(aten.slice.Tensor, x, 1, 0, 1), rank + 1
            elif isinstance(step, Like):
                x = self.call(aten.expand.default, x, self._shape(step.node))
                rank = step.node.meta["val"].dim()
            elif step == FIRST_HEAD:
                x = self.call(aten.slice.Tensor, x, 1, 0, 1)
            elif isinstance(step, float):
                x = self.call(aten.mul.Tensor, x, step)
            elif isinstance(step, int):
                x, rank = self._lifted(x, rank, step), step
            else:
                assert isinstance(step, fx.Node)
                rest = fx.map_arg(step.args[1:], self.new.__getitem__)
                kwargs = fx.map_arg(step.kwargs, self.new.__getitem__)
                x = self.call(replayed(step), x, *rest, **kwargs)
                rank = step.meta["val"].dim()
        return x, rank


def _heads_last(lead: Lead) -> list[int]:
    """The order that brings split-off heads behind the other leading axes."""
    rest = [i for i in range(lead.count + 1) if i != lead.split + 1]
    return [*rest, lead.split + 1, lead.count + 1, lead.count + 2]
