"""Reading a node: its operator, arguments and fake value, its module path, its source line."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from attnpass.torch_internals import (
    ENTER_AUTOCAST,
    EXIT_AUTOCAST,
    GRAD_MODE,
    PARAMETERS,
    FakeTensor,
    autocast_state,
    dynamo_source,
    is_static_input,
    schema,
)


def op_name(node: Any) -> str:
    """The ATen name without namespace and overload, ``""`` for what is not an ATen operator."""
    found = schema(node)
    return str(found.name.split("::")[1]) if found is not None else ""


def value(node: fx.Node) -> Tensor:
    """The fake tensor that stands for a node's result: its shape, dtype, device and strides."""
    found: Tensor = node.meta["val"]
    return found


def operand(node: fx.Node, i: int = 0) -> fx.Node:
    """The node that is a node's i-th argument.

    Raises:
        TypeError: the argument is a number, a list or nothing.
    """
    found = node.args[i]
    if not isinstance(found, fx.Node):
        raise TypeError(f"expected a node as argument {i} of {node.format_node()}, got {found!r}")
    return found


def number(node: fx.Node, i: int) -> int:
    """The whole number that is a node's i-th argument: an axis, a size known in advance."""
    found = node.args[i]
    assert isinstance(found, int), node.format_node()
    return found


def numbers(given: Any) -> list[int]:
    """Whole numbers of an argument that is one of them or a list: axes, sizes."""
    return [int(x) for x in given] if isinstance(given, (list, tuple)) else [int(given)]


def nodes(given: Any) -> list[fx.Node]:
    """The nodes of an argument that is a list of them; anything else in it is left out."""
    return [x for x in given if isinstance(x, fx.Node)] if isinstance(given, (list, tuple)) else []


def module_path(node: fx.Node) -> str:
    """The module path of a node below the compiled module, ``root`` at its top."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return "root"
    entries = list(stack.values())
    if len(entries) > 1 and getattr(entries[-1][1], "__name__", "") in ("Softmax", "Dropout"):
        entries.pop()  # nn.Softmax: the attention is the module around it
    return plain_path(str(entries[-1][0])) or "root"


def plain_path(path: str) -> str:
    """Dynamo's ``L['self'].__dict__['_modules']['a'][0]`` as ``a.0``, a module's own name."""
    path = re.sub(r"^[LG]\['[^']*'\]", "", path)
    path = re.sub(r"\[['\"]?([^'\"\]]+)['\"]?\]", r".\1", path)
    return re.sub(r"(^|\.)((_modules|__dict__)\.)+", r"\1", path).strip(".")


def source_line(node: fx.Node) -> str:
    """``file:line`` of the innermost user frame, ``""`` where unknown."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    return f"{frames[-1][0]}:{frames[-1][1]}" if frames else ""


def weight_inputs(gm: fx.GraphModule, inputs: Sequence[Any]) -> set[fx.Node]:
    """The placeholders that hold parameters and buffers."""
    return {
        node
        for node, value in zip(gm.graph.find_nodes(op="placeholder"), inputs, strict=True)
        if isinstance(value, nn.Parameter) or (isinstance(value, Tensor) and is_static_input(node))
    }


def relative_path(node: fx.Node) -> str:
    """A parameter's path below the module that the graph's paths start from, ``""`` unknown."""
    source = dynamo_source(node)
    name = getattr(source, "name", "")
    path = plain_path(name() if callable(name) else name)
    return path.replace(f".{PARAMETERS}.", ".").replace(f"{PARAMETERS}.", "")


def is_metadata(node: fx.Node) -> bool:
    """Whether a user only reads shape, dtype or device."""
    return op_name(node) in (
        "sym_size",
        "sym_numel",
        "sym_stride",
        "zeros_like",
        "ones_like",
        "empty_like",
        "new_ones",
        "new_zeros",
        "new_full",
    ) or (node.target in (getattr, operator.attrgetter))


def attribute(node: fx.Node) -> Tensor | None:
    """The real tensor that a ``get_attr`` node holds, None where there is none."""
    held: Any = node.graph.owning_module
    for part in str(node.target).split("."):
        held = getattr(held, part, None)
    held = getattr(held, "constant", None) if isinstance(held, FakeTensor) else held
    return held if isinstance(held, Tensor) else None


def switched(node: fx.Node, until: fx.Node) -> bool:
    """Whether gradients are switched on or off between two nodes."""
    while node is not until and node.op != "root":
        if getattr(node.target, "__name__", "") == GRAD_MODE:
            return True
        node = node.next
    return False


def permuted(node: fx.Node) -> list[int]:
    """For every axis of a transposed node the axis of its operand."""
    rank = value(node).dim()
    own = list(range(rank))
    if op_name(node) == "permute":
        return [i % rank for i in numbers(node.args[1])]
    a, b = numbers(node.args[1:3]) if len(node.args) > 2 else (-2, -1)
    own[a], own[b] = own[b], own[a]
    return own


def call_like(graph: fx.Graph, like: fx.Node, target: Any, *args: Any) -> fx.Node:
    """A call with the meta of ``like`` and a value of its own."""
    node = graph.call_function(target, args)
    values = fx.map_arg(args, lambda n: n.meta["val"])
    node.meta = {**like.meta, "val": target(*values)}
    return node


def under_autocast(node: fx.Node) -> bool:
    """Whether autocast is on where a node runs: around the graph, or in a region of it."""
    if autocast_state(value(node).device.type)[0]:
        return True
    depth = 0
    for other in node.graph.nodes:
        if other is node:
            break
        depth += (other.target is ENTER_AUTOCAST) - (other.target is EXIT_AUTOCAST)
    return depth > 0


def twin(value: Tensor) -> Tensor:
    """A fake tensor of the active mode like one of another mode."""
    out = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
    return out.requires_grad_(value.requires_grad)
