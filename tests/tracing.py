"""Small functions traced to the normal form without Dynamo: graphs, axes and verdicts of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from attnpass import forms
from attnpass.graph import op_name
from attnpass.graph.composed import COMPOSED
from attnpass.graph.normal_form import tidy
from attnpass.matching.axes import AxisTracer
from attnpass.matching.factors import Axes
from attnpass.matching.verdicts import Matches, match
from attnpass.rewrite import rewrite
from attnpass.site import AttentionSite, Decline


def traced(function: Callable[..., Any], *inputs: Any, mode: str = "fake") -> fx.GraphModule:
    """The normal form of ``function``; ``mode`` "symbolic" makes every size a symbol."""
    trace = make_fx(function, decomposition_table=COMPOSED, pre_dispatch=True, tracing_mode=mode)
    return tidy(trace(*inputs))


def holders(gm: fx.GraphModule) -> list[fx.Node]:
    """The placeholders of a graph, in the order of the inputs."""
    return list(gm.graph.find_nodes(op="placeholder"))


def only(gm: fx.GraphModule, name: str) -> fx.Node:
    """The one node whose operator is called ``name``."""
    (node,) = (n for n in gm.graph.nodes if n.op == "call_function" and op_name(n) == name)
    return node


def result(gm: fx.GraphModule) -> Any:
    """The node, or nodes, that the graph returns."""
    return gm.graph.output_node().args[0]


def axes_of(
    function: Callable[..., Any], *inputs: Tensor, weights: int = 0, mode: str = "fake"
) -> tuple[Any, list[Axes], fx.GraphModule]:
    """Axes of the result and of the inputs; the last ``weights`` inputs are parameters."""
    gm = traced(function, *inputs, mode=mode)
    given = holders(gm)
    known = AxisTracer(gm.graph, set(given[len(given) - weights :])).axes
    out = result(gm)
    found = [known[n] for n in out] if isinstance(out, (list, tuple)) else known[out]
    return found, [known.get(n, ()) for n in given], gm


def matched(function: Callable[..., Any], *inputs: Tensor, weights: int = 0) -> Matches:
    """Every verdict on ``function``; the last ``weights`` inputs are parameters."""
    gm = traced(function, *inputs)
    given = holders(gm)
    return match(gm.graph, set(given[len(given) - weights :]))


def shapes(*, keys: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Queries ``[2, 3, 5, 4]``, keys and values ``[2, 3, keys, 4]`` in float64."""
    make = torch.Generator().manual_seed(1)
    sizes = ((2, 3, 5, 4), (2, 3, keys, 4), (2, 3, keys, 4))
    q, k, v = (torch.randn(s, generator=make, dtype=torch.float64) for s in sizes)
    return q, k, v


def proven(function: Callable[..., Any], *inputs: Tensor, weights: int = 0) -> Matches:
    """The verdicts on ``function``; asserts that softmax put back at every site keeps its numbers.

    Every input is cloned for each run, so that a function may write to it.
    """
    gm = traced(function, *(x.clone() for x in inputs))
    given = holders(gm)
    found = match(gm.graph, set(given[len(given) - weights :]))
    modules = {
        r.site.name: forms.build("softmax", r.site)
        for r in found.regions
        if r.site.legal["softmax"] is None
    }
    run = rewrite(gm, found.regions, modules) if modules else gm
    with torch.no_grad():
        want = function(*(x.clone() for x in inputs))
        got = run(*(x.clone() for x in inputs))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12, equal_nan=True)
    return found


def site_of(function: Callable[..., Any], *inputs: Tensor, weights: int = 0) -> AttentionSite:
    """The one site of ``function``, proven as above; nothing is declined."""
    found = proven(function, *inputs, weights=weights)
    assert [str(d) for d in found.declined] == []
    (region,) = found.regions
    return region.site


def code_of(function: Callable[..., Any], *inputs: Tensor, weights: int = 0) -> str:
    """The code of the one decline of ``function``, or why its one softmax is all that is known."""
    found = proven(function, *inputs, weights=weights)
    (decline,) = [*found.declined, *unread(r.site for r in found.regions)]
    assert len(found.declined) + len(found.regions) == 1
    assert decline.hint and decline.node
    return decline.code


def unread(sites: Iterable[AttentionSite]) -> list[Decline]:
    """Why more than the softmax is not known of sites; every other site fails."""
    found = list(sites)
    assert all(site.degree == "logits" for site in found)
    reasons = [site.legal["hydra"] for site in found]
    assert None not in reasons
    return [reason for reason in reasons if reason is not None]


def projected(core: Callable[..., Any]) -> Callable[..., Any]:
    """Attention on projected tokens: the heads are then proven, also where they are flattened."""

    def run(x: Tensor, y: Tensor, *more: Tensor) -> Any:
        *masks, w, u, t = more
        heads = lambda z, m: (z @ m).unflatten(-1, (3, 4)).transpose(1, 2)  # noqa: E731
        return core(heads(x, w), heads(y, u), heads(y, t), *masks)

    return run


def projections() -> tuple[Tensor, Tensor, list[Tensor]]:
    """Tokens ``[2, 5, 6]``, context ``[2, 7, 6]``, and the weights of three projections."""
    make = torch.Generator().manual_seed(1)
    sizes = (2, 5, 6), (2, 7, 6), (6, 12), (6, 12), (6, 12)
    x, y, *weights = (torch.randn(s, generator=make, dtype=torch.float64) for s in sizes)
    return x, y, weights
