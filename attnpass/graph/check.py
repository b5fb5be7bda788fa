"""Checks the stage ``normal_form``: a graph keeps the promises of the normal form."""

from __future__ import annotations

from torch import Tensor, fx

from attnpass.graph.flex import Flex
from attnpass.graph.opaque import Opaque
from attnpass.graph.stages import require
from attnpass.torch_internals import GRAD_MODE, OpOverload, schema

STAGE = "normal_form"

PLAIN = ("_operator", "math", "builtins", "torch.fx.experimental.symbolic_shapes")
"""Modules whose functions may stand in the normal form: arithmetic on sizes, list access."""

MARKERS = (GRAD_MODE, "_enter_autocast", "_exit_autocast")
"""Functions of torch that switch a mode for the nodes behind them."""


def check_normal_form(before: fx.GraphModule, after: fx.GraphModule) -> None:
    """Check that ``after`` is the normal form of ``before``.

    Raises:
        CheckError: a promise of the normal form does not hold.
    """
    after.graph.lint()
    inputs = (gm.graph.find_nodes(op="placeholder") for gm in (before, after))
    old, new = inputs
    require(len(old) == len(new), STAGE, "the inputs are those of Dynamo's graph")
    for node in after.graph.nodes:
        known = node.op in ("placeholder", "get_attr", "call_function", "output")
        require(known, STAGE, "every node is an input, a constant, a call or the output", node)
        if node.op != "call_function":
            continue
        require(_allowed(node), STAGE, "every call is of an ATen overload or of a piece", node)
        overload = isinstance(node.target, OpOverload)
        called = schema(node)
        nothing = called is not None and not called.returns  # a check has no result
        has = "val" in node.meta or not overload or nothing
        require(has, STAGE, "every operator's result has a fake value", node)
        own = [x.meta.get("val") for x in node.all_input_nodes]
        modes = {x.fake_mode for x in own if isinstance(x, Tensor) and hasattr(x, "fake_mode")}
        require(len(modes) <= 1, STAGE, "all fake values are of one mode", node)


def _allowed(node: fx.Node) -> bool:
    """Whether the normal form has such calls."""
    if isinstance(node.target, (OpOverload, Opaque, Flex)):
        return True
    module, name = (getattr(node.target, x, "") for x in ("__module__", "__name__"))
    of_sizes = module == "torch" and name.startswith("sym_")
    return module in PLAIN or of_sizes or name in MARKERS
