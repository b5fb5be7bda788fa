"""Graph + regions + modules -> graph: each region becomes one call of its form's module.

The original graph is never touched: the rewrite works on a copy, which runs eagerly as it is, or
is traced once more into plain operators for a compiler.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import fx, nn

from attnpass.forms import SkipAt, SoftmaxWeights, Weights
from attnpass.graph import checked, dump, value
from attnpass.matching import FILL, SHARED, Operand, Region
from attnpass.rewrite.check import check_rewritten
from attnpass.rewrite.layouts import canonical_operand, restored
from attnpass.rewrite.mask_nodes import combined, mask_node
from attnpass.rewrite.writer import Writer

FORMS_ATTRIBUTE = "attnpass_forms"
"""The submodule of a rewritten graph that holds the forms, keyed by position."""

aten = torch.ops.aten


def rewrite(
    gm: fx.GraphModule, regions: list[Region], modules: Mapping[str, nn.Module]
) -> fx.GraphModule:
    """A copy of ``gm`` in which every region named in ``modules`` runs its module.

    A module that nothing legal uses must not be passed: it would be dropped as dead code.
    """
    out = rewritten(gm, regions, modules).finish()
    if checked():
        check_rewritten(gm, out)
    dump("rewritten", out)
    return out


def rewritten(
    gm: fx.GraphModule, regions: list[Region], modules: Mapping[str, nn.Module]
) -> Writer:
    """The copy of ``gm`` with the modules in it, before dead code is removed."""
    w, forms = Writer(gm), nn.ModuleDict()
    w.gm.add_module(FORMS_ATTRIBUTE, forms)
    for i, region in enumerate(regions):
        module = modules.get(region.site.name)
        if module is None:
            continue
        forms[str(i)] = module
        target = f"{FORMS_ATTRIBUTE}.{i}"
        if isinstance(module, SkipAt):
            _skip(w, region, target)
        elif isinstance(module, (Weights, SoftmaxWeights)):
            _swap(w, region, target)
        else:
            _replace(w, region, target)
    return w


def _replace(w: Writer, region: Region, target: str) -> None:
    """The whole attention becomes one call: q, k, v, bias and kept positions in, result out."""
    old = w.read(region.out.node)
    logits = region.logits
    with w.graph.inserting_before(old):
        q, k, v = _operands(w, region)
        dtypes = {value(x.node).dtype for x in region.operands}
        wide = functools.reduce(torch.promote_types, dtypes)
        if len(dtypes) > 1:
            q, k, v = (w.call(aten.to.dtype, x, wide) for x in (q, k, v))
        if logits.tempers and logits.scale != 1:
            q = w.call(aten.mul.Tensor, q, logits.scale)
        for factor, inverse in logits.tempers:
            q = w.call(aten.div.Tensor if inverse else aten.mul.Tensor, q, mask_node(w, factor))
        keep = combined(w, logits.keeps, aten.bitwise_and.Tensor)
        bias = combined(w, logits.biases, aten.add.Tensor)
        out = w.module(target, (q, k, v, bias, keep), old)
        out = restored(w, out, region.out, _whole(region), wide)
    w.instead(region.out.node, out)


def _operands(w: Writer, region: Region) -> list[fx.Node]:
    """Queries, keys and values with the batch and heads that broadcasting gives them.

    Keys and values may keep fewer heads than the queries, which the forms repeat, but they have
    the same ones.
    """
    q, k, v = region.operands
    return [
        canonical_operand(w, q, (k, v)),
        canonical_operand(w, k, (v, _without_heads(q))),
        canonical_operand(w, v, (k, _without_heads(q))),
    ]


def _without_heads(x: Operand) -> Operand:
    """The operand as one that gives its batch and not its heads."""
    paired = x.lead.paired and x.lead.split < 0
    heads = x.lead.count - 1
    order = [SHARED if paired and i == heads else at for i, at in enumerate(x.permutation)]
    return replace(x, permutation=tuple(order))


def _whole(region: Region) -> Operand:
    """An operand with as large a batch as any, to read sizes from."""

    def ones(x: Operand) -> int:
        shape = value(x.node).shape
        return sum(i != SHARED and shape[i] == 1 for i in x.permutation[: x.lead.count])

    return min(reversed(region.operands), key=ones)


def _swap(w: Writer, region: Region, target: str) -> None:
    """The softmax node alone changes: logits in, weights out."""
    weights = region.weights
    assert weights is not None
    logits = weights.node.args[0]
    assert isinstance(logits, fx.Node)
    old, operand = w.read(weights.node), replace(weights, node=logits)
    with w.graph.inserting_before(old):
        x = canonical_operand(w, operand)
        keep = None  # softmax in its own place needs none
        if region.site.mixed or region.site.degree == "logits":
            keep = w.call(aten.gt.Scalar, x, FILL)
        elif not region.site.sink:
            keep = combined(w, region.logits.keeps, aten.bitwise_and.Tensor)
        out = w.module(target, (x, keep), old)
        wide = torch.promote_types(value(logits).dtype, torch.float32)
        out = restored(w, out, weights, operand, wide)
    w.instead(weights.node, out)


def _skip(w: Writer, region: Region, target: str) -> None:
    """The block's output is made from the block before it."""
    assert region.block_out is not None and region.previous is not None
    assert region.previous.block_out is not None
    old = w.read(region.block_out)
    with w.graph.inserting_before(old):
        keep = combined(w, region.logits.keeps, aten.bitwise_and.Tensor)
        out = w.module(target, (w.read(region.previous.block_out), keep), old)
    w.instead(region.block_out, out)
