"""Dynamo's graph in one functional vocabulary. Knows torch.fx, and nothing of attention.

``normalize`` yields the normal form: pre-dispatch ATen, in-place writes made functional, one
spelling of softmax. Other functions read the nodes of this graph: operators, shapes, places in the
model, shared storage. ``dump`` and ``require`` show and check the stages of the pass. This room
imports ``errors`` alone.
"""

from __future__ import annotations

from attnpass.graph import operators
from attnpass.graph.aliasing import draws, is_impure, views_of, writes, written
from attnpass.graph.check import check_normal_form
from attnpass.graph.flex import Flex
from attnpass.graph.nodes import (
    attribute,
    is_metadata,
    module_path,
    nodes,
    number,
    numbers,
    op_name,
    operand,
    permuted,
    relative_path,
    source_line,
    switched,
    value,
    weight_inputs,
)
from attnpass.graph.normal_form import NormalizeError, Opened, normalize, retrace
from attnpass.graph.opaque import SUBCLASS, Opaque, unfold
from attnpass.graph.products import broadcast
from attnpass.graph.softmax import unlike_softmax
from attnpass.graph.stages import checked, dump, require

__all__ = [
    "SUBCLASS",
    "Flex",
    "NormalizeError",
    "Opaque",
    "Opened",
    "attribute",
    "broadcast",
    "check_normal_form",
    "checked",
    "draws",
    "dump",
    "is_impure",
    "is_metadata",
    "module_path",
    "nodes",
    "normalize",
    "number",
    "numbers",
    "op_name",
    "operand",
    "operators",
    "permuted",
    "relative_path",
    "require",
    "retrace",
    "source_line",
    "switched",
    "unfold",
    "unlike_softmax",
    "value",
    "weight_inputs",
    "writes",
    "views_of",
    "written",
]
