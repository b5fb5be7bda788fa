"""Families of ATen operators, by their names without namespace and overload.

One table for all who read a graph. A family says what its members do to a tensor; a larger family
is made of smaller ones, so that none is written twice.
"""

from __future__ import annotations

SOFTMAX = frozenset({"softmax", "_softmax", "special_softmax"})
"""Softmax over one axis."""

CASTS = frozenset({"to", "_to_copy", "type_as", "float", "half", "bfloat16", "lift_fresh_copy"})
"""The same values in another dtype or on another device."""

COPIES = frozenset({"contiguous", "clone", "alias", "lift_fresh"})
"""The same values."""

MAY_COPY = CASTS | COPIES | {"reshape", "flatten", "unflatten", "reshape_as", "expand_copy"}
"""Operators that give a view of their operand or a copy, as strides and dtypes fall."""

REGROUPS = frozenset({"view", "reshape", "_unsafe_view", "flatten", "unflatten"})
"""The same values in the same order, their axes split or merged."""

VIEWS = REGROUPS | {"unsqueeze", "squeeze"}
"""The same values in the same order, under other axes."""

TRANSPOSES = frozenset({"transpose", "permute", "mT", "swapaxes"})
"""The same values, their axes in another order."""

PIECES = frozenset({"slice", "select"})
"""Some of the values along one axis."""

SHAPES = (
    VIEWS | PIECES | {"expand", "permute", "transpose", "contiguous", "clone", "alias", "detach"}
)
"""No arithmetic: every value of the result is one of the operand's, wherever it went."""

SPLITS = frozenset(
    {"split", "split_with_sizes", "chunk", "unbind", "tensor_split"}
    | {"unsafe_split", "unsafe_chunk"}
)
"""One tensor cut into a list of them."""

PROJECTIONS = frozenset(
    {"linear", "addmm", "conv1d", "conv2d", "conv3d", "convolution", "embedding"}
)
"""Values made of an operand and of weights."""

ZEROS = frozenset({"zeros", "zeros_like", "new_zeros"})
"""A tensor of zeros."""
