"""Graph -> attention sites and declines. Pure: reads the graph, edits nothing.

Every softmax-like anchor gets exactly one verdict: a region with its site, or a Decline.

Soundness: a site is claimed only of an anchor that the readers proved. Two conditions are its own:

1. The anchor's operator can be read; those of ``OPAQUE`` hide what they compute.
2. The anchor is a softmax, not an exponential that is normalised in another way (off by two).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from torch import fx

from attnpass.graph import (
    Opaque,
    module_path,
    op_name,
    operators,
    source_line,
    unlike_softmax,
)
from attnpass.matching.chain import reached
from attnpass.matching.factors import Axes
from attnpass.matching.facts import GraphFacts
from attnpass.matching.legality import legality
from attnpass.matching.reader import read_region
from attnpass.matching.refuse import Refuse
from attnpass.matching.region import SDPA, Region
from attnpass.site import Decline
from attnpass.torch_internals import schema

_SWITCH_OFF = "torch.backends.mha.set_fastpath_enabled(False) before compiling opens it"

OPAQUE = {
    "_native_multi_head_attention": _SWITCH_OFF,
    "_transformer_encoder_layer_fwd": _SWITCH_OFF,
    "_flash_attention_forward": "call scaled_dot_product_attention instead",
    "_safe_softmax": "call softmax or scaled_dot_product_attention instead",
}
"""Attention operators that cannot be opened, with the cure."""

ANCHORS = operators.SOFTMAX | frozenset(OPAQUE) | {SDPA}
"""Operators that may be attention."""

MARKS = ("softmax", "scaled_dot_product_attention", "multi_head_attention", "encoder_layer_fwd")
"""Parts of the names that attention has in Dynamo's own graph."""


PRODUCTS = frozenset({"matmul", "mm", "bmm", "mv", "baddbmm", "einsum"})
"""Products of two tensors, as Dynamo's own graph calls them."""


@dataclass
class Matches:
    """All verdicts of one graph."""

    regions: list[Region] = field(default_factory=list)
    declined: list[Decline] = field(default_factory=list)


EXPONENTIALS = frozenset({"exp", "exp2"})
"""What a softmax is made of; one that is written by hand in a known way is a softmax already."""


def anchors(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that may be attention, in program order."""
    calls = [n for n in graph.nodes if n.op == "call_function"]
    return [n for n in calls if op_name(n) in ANCHORS or _of_logits(n)]


def _of_logits(node: fx.Node) -> bool:
    """Whether a node is the exponential of a product of two activations."""
    if op_name(node) not in EXPONENTIALS or not isinstance(node.args[0], fx.Node):
        return False
    return any(not isinstance(way, Refuse) for way in reached(node))


def match(
    graph: fx.Graph,
    parameters: set[fx.Node],
    allow: Collection[str] = (),
    given: Mapping[fx.Node, Axes] = MappingProxyType({}),
) -> Matches:
    """Every verdict on a normalised graph.

    Args:
        graph: in normal form. parameters: its weight placeholders.
        allow: what the user accepts (``site.ALLOW``).
        given: axes of inputs, known from an earlier graph.
    """
    found = anchors(graph)
    out = Matches(declined=[*_hidden(graph), *_foreign(graph)])
    if not found:
        return out
    facts = GraphFacts.of(graph, parameters, given)
    names: dict[str, int] = {}
    for anchor in found:
        path, source = module_path(anchor), source_line(anchor)
        at = Decline("", path, source, node=anchor.name)
        count = names.get(path, 0) + 1
        name = path if count == 1 else f"{path}#{count}"
        try:
            if op_name(anchor) in OPAQUE:
                hint = OPAQUE[op_name(anchor)]
                raise Refuse("verdicts 1", "OPAQUE_FASTPATH", hint, anchor)
            if op_name(anchor) in EXPONENTIALS:
                raise Refuse("verdicts 2", "UNKNOWN_SOFTMAX", unlike_softmax(anchor), anchor)
            region = read_region(facts, anchor, name, source)
        except Refuse as no:
            decline = replace(at, code=no.code, hint=no.hint, node=no.node.name)
            out.declined.append(replace(decline, condition=no.condition))
            continue
        names[path] = count
        region = replace(region, previous=_previous(region, out.regions))
        traits = replace(region.traits, previous=region.previous is not None)
        legal = MappingProxyType(legality(traits, at, allow))
        out.regions.append(replace(region, site=replace(region.site, legal=legal)))
    return out


def marked(node: fx.Node) -> bool:
    """Whether a node of Dynamo's own graph may be attention."""
    calls = node.op in ("call_function", "call_method", "call_module")
    named = any(mark in str(node.target).lower() for mark in MARKS)
    return calls and (named or foreign(node) != "")


def foreign(node: fx.Node) -> str:
    """The name of an attention operator of another library; ``""`` for anything else."""
    found = schema(node)
    own = found is None or found.name.split("::")[0] in ("aten", "prims", "prim", "attnpass")
    if own or found is None or not re.search("att(n|en)", found.name.lower()):
        return ""
    return str(found.name)


def _foreign(graph: fx.Graph) -> Iterator[Decline]:
    """Declines for attention behind operators of other libraries."""
    for node in graph.nodes:
        name = foreign(node)
        if name:
            hint = f"{name} cannot be opened; call scaled_dot_product_attention instead"
            yield Decline("OPAQUE_FASTPATH", module_path(node), source_line(node), hint, node.name)


def _hidden(graph: fx.Graph) -> Iterator[Decline]:
    """Declines for the look-alikes inside pieces that cannot be opened."""
    for piece in graph.nodes:
        if not isinstance(piece.target, Opaque):
            continue
        for node in piece.target.nodes():
            at = node if node.meta.get("stack_trace") else piece
            where = (module_path(at), source_line(at))
            if "flex_attention" in str(node.target):
                hint = f"flex attention whose functions are not read: {piece.target.why}"
                yield Decline("FLEX", *where, hint, node.name)
            elif marked(node) or _of_product(node):
                hint = f"it stands inside {piece.target.kind}, which is kept as it is"
                yield Decline("HOP_UNSUPPORTED", *where, hint, node.name)


def _of_product(node: fx.Node) -> bool:
    """Whether a node of Dynamo's own graph is the exponential of a product, as by hand."""
    if _called(node) not in EXPONENTIALS:
        return False
    seen: set[fx.Node] = set()
    stack = list(node.all_input_nodes)
    while stack:
        node = stack.pop()
        if _called(node) in PRODUCTS:
            return True
        if node not in seen:
            seen.add(node)
            stack.extend(node.all_input_nodes)
    return False


def _called(node: fx.Node) -> str:
    """The name of what a node of Dynamo's own graph calls."""
    return str(getattr(node.target, "__name__", node.target))


def _previous(region: Region, earlier: list[Region]) -> Region | None:
    """The attention whose block output skipat would reuse; None where there is none."""
    if region.block_out is None:
        return None
    for other in reversed(earlier):
        if (
            other.block_out is not None
            and other.site.kind == "self"
            and other.site.width == region.site.width
            and other.tokens == region.tokens
        ):
            return other
    return None
