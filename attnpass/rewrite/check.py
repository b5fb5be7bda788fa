"""Whether a rewrite left alone all that it should leave alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from attnpass.graph import is_impure, require
from attnpass.torch_internals import expression, pytree

STAGE = "rewritten"


def check_rewritten(before: fx.GraphModule, after: fx.GraphModule, stage: str = STAGE) -> None:
    """Check a rewritten graph, or one that was traced from it, against the normal form.

    A traced graph also has the shapes, dtypes and devices of the results; new inputs, a form's
    parameters, may follow the old ones.

    Raises:
        CheckError: inputs, results or effects are not those of the original.
    """
    after.graph.lint()
    old, new = (gm.graph.find_nodes(op="placeholder") for gm in (before, after))
    require(len(old) <= len(new), stage, "the inputs of the original come first")
    require(_effects(before) == _effects(after), stage, "effects are kept, in order")
    results = [_results(gm) for gm in (before, after)]
    require(len(results[0]) == len(results[1]), stage, "there are as many results")
    for node, other in zip(*results, strict=True):
        kinds = _kind(node), _kind(other)
        if None not in kinds:
            promise = f"a result stays of shape, dtype and device {kinds[0]}, not {kinds[1]}"
            require(kinds[0] == kinds[1], stage, promise, other)


def _effects(gm: fx.GraphModule) -> list[str]:
    """The calls that write or mark, in order."""
    ends = ("placeholder", "output")
    return [str(n.target) for n in gm.graph.nodes if n.op not in ends and is_impure(n)]


def _results(gm: fx.GraphModule) -> list[Any]:
    leaves = pytree.tree_leaves(gm.graph.output_node().args[0])
    return [x for x in leaves if isinstance(x, fx.Node)]


def _kind(node: fx.Node) -> tuple[Any, ...] | None:
    """Shape, dtype and device of a result; None where its value is not known."""
    found = node.meta.get("val")
    if not isinstance(found, Tensor):
        return None
    return tuple(expression(s) for s in found.shape), found.dtype, found.device
