"""Dynamo's graph in one functional vocabulary. Knows torch.fx, and nothing of attention."""

from __future__ import annotations

from attnpass.graph.aliasing import is_impure, writes, written
from attnpass.graph.nodes import (
    CASTS,
    COPIES,
    SOFTMAX,
    TRANSPOSES,
    VIEWS,
    attribute,
    is_metadata,
    module_path,
    op_name,
    permuted,
    relative_path,
    source_line,
    switched,
    weight_inputs,
)
from attnpass.graph.normal_form import NormalizeError, Opened, normalize, retrace
from attnpass.graph.opaque import Opaque, unfold

__all__ = [
    "CASTS",
    "COPIES",
    "NormalizeError",
    "Opaque",
    "Opened",
    "SOFTMAX",
    "TRANSPOSES",
    "VIEWS",
    "attribute",
    "is_impure",
    "is_metadata",
    "module_path",
    "normalize",
    "op_name",
    "permuted",
    "relative_path",
    "retrace",
    "source_line",
    "switched",
    "unfold",
    "weight_inputs",
    "writes",
    "written",
]
