"""Graph -> attention sites and declines. Pure: reads the graph, edits nothing.

Every softmax-like anchor gets exactly one verdict: a region with its site, or a Decline.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from torch import fx

from attnpass.graph import SOFTMAX, Opaque, module_path, op_name, source_line, written
from attnpass.matching.axes import AxisTracer
from attnpass.matching.legality import legality
from attnpass.matching.reader import Reader
from attnpass.matching.refuse import Refuse
from attnpass.matching.region import SDPA, Region
from attnpass.site import Decline

OPAQUE = {
    "_native_multi_head_attention": "torch.backends.mha.set_fastpath_enabled(False) before "
    "compiling opens it",
    "_transformer_encoder_layer_fwd": "torch.backends.mha.set_fastpath_enabled(False) before "
    "compiling opens it",
    "_flash_attention_forward": "call scaled_dot_product_attention instead",
}
"""Attention operators that cannot be opened, with the cure."""

ANCHORS = SOFTMAX | frozenset(OPAQUE) | {SDPA}


@dataclass
class Matches:
    """All verdicts of one graph."""

    regions: list[Region] = field(default_factory=list)
    declined: list[Decline] = field(default_factory=list)


def anchors(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that may be attention, in program order."""
    return [n for n in graph.nodes if n.op == "call_function" and op_name(n) in ANCHORS]


def match(graph: fx.Graph, parameters: set[fx.Node], allow: Collection[str] = ()) -> Matches:
    """Every verdict on a normalised graph; ``parameters`` are its weight placeholders."""
    found = anchors(graph)
    out = Matches(declined=list(_hidden(graph)))
    if not found:
        return out
    reader = Reader(AxisTracer(graph, parameters).axes, parameters, written(graph))
    names: dict[str, int] = {}
    for anchor in found:
        path, source = module_path(anchor), source_line(anchor)
        at = Decline("", path, source, node=anchor.name)
        try:
            if op_name(anchor) in OPAQUE:
                raise Refuse("OPAQUE_FASTPATH", OPAQUE[op_name(anchor)], anchor)
            names[path] = names.get(path, 0) + 1
            name = path if names[path] == 1 else f"{path}#{names[path]}"
            region = reader.read(anchor, name, source)
        except Refuse as no:
            names[path] = names.get(path, 1) - 1
            out.declined.append(replace(at, code=no.code, hint=no.hint, node=no.node.name))
            continue
        _link(region, out.regions)
        traits = replace(region.traits, previous=region.previous is not None)
        legal = MappingProxyType(legality(traits, at, allow))
        region.site = replace(region.site, legal=legal)
        out.regions.append(region)
    return out


MARKS = ("softmax", "scaled_dot_product_attention", "multi_head_attention", "encoder_layer_fwd")
"""Parts of the names that attention has in Dynamo's own graph."""


def marked(node: fx.Node) -> bool:
    """Whether a node of Dynamo's own graph may be attention."""
    calls = node.op in ("call_function", "call_method", "call_module")
    return calls and any(mark in str(node.target).lower() for mark in MARKS)


def _hidden(graph: fx.Graph) -> Iterator[Decline]:
    """What looks like attention inside pieces that cannot be opened."""
    for piece in graph.nodes:
        if not isinstance(piece.target, Opaque):
            continue
        for node in piece.target.nodes():
            at = node if node.meta.get("stack_trace") else piece
            where = (module_path(at), source_line(at))
            if "flex_attention" in str(node.target):
                hint = "flex attention has its own kernels and score function"
                yield Decline("FLEX", *where, hint, node.name)
            elif marked(node):
                hint = "it stands in a region (vmap, cond, custom autograd) that is kept as it is"
                yield Decline("HOP_UNSUPPORTED", *where, hint, node.name)


def _link(region: Region, earlier: list[Region]) -> None:
    """Find the attention block whose output skipat would reuse."""
    for other in reversed(earlier):
        if (
            region.block_out is not None
            and other.block_out is not None
            and other.site.kind == "self"
            and other.site.width == region.site.width
            and other.tokens == region.tokens
        ):
            region.previous = other
            return
