"""Capture a model once, then run it under any plan: switching a plan takes milliseconds.

Every captured graph sits behind a trampoline, so that Dynamo's guards and bytecode stay while the
graph that runs is exchanged. Graphs run eagerly, in plain operators: for accuracy, calibration and
distillation, not for speed.
"""

from __future__ import annotations

import itertools
import types
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from attnpass.capture.captured import CapturedGraph, Changes, Choice, Chooser, Layer
from attnpass.capture.names import SiteNames
from attnpass.capture.shared import Shared
from attnpass.errors import CaptureError
from attnpass.matching import Region
from attnpass.plan import Entry, Plan, warn_or_raise
from attnpass.site import AttentionSite, Decline
from attnpass.torch_internals import is_recompile_limit, raise_recompile_limits

_number = itertools.count()


class Capture:
    """A model behind trampolines. Call it like the model.

    Args:
        model: the model; its parameters stay its own and may change.
        allow: what the caller accepts (``site.ALLOW``).
        dynamic: handed to ``torch.compile``: whether sizes are symbolic from the start.
    """

    def __init__(
        self, model: nn.Module, *, allow: Collection[str] = (), dynamic: bool | None = None
    ) -> None:
        self.model, self.allow = model, tuple(allow)
        self.graphs: list[CapturedGraph] = []
        self._names, self._choice = SiteNames(model), Choice()
        self._keep = False
        self._shared: Shared | None = None
        self.calls = 0
        this = weakref.ref(self)

        def backend(gm: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
            # Dynamo keeps every backend: by a reference it would keep all graphs of this capture
            capture = this()
            assert capture is not None
            return capture._backend(gm, inputs)

        self._entry = torch.compile(fresh_entry(model), backend=backend, dynamic=dynamic)

    def _backend(self, gm: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        graph = CapturedGraph(gm, inputs, self._names, self._choice, self.allow)
        graph.layer(inputs)
        self.graphs.append(graph)

        def trampoline(*args: Any) -> Any:
            out = graph(*args, shared=None if self.model.training else self._shared)
            if self._keep:
                graph.last = (args, out)
                self.calls += 1
            return out

        return trampoline

    def close(self) -> None:
        """Forget the graphs: Dynamo keeps their callables, and these would keep fake tensors.

        The capture cannot be called any more.
        """
        for graph in self.graphs:
            graph.close()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output under the plan in use.

        Raises:
            CaptureError: the model was recompiled too often to trust what runs.
        """
        with raise_recompile_limits():
            try:
                return self._entry(*args, **kwargs)
            except Exception as error:
                if not is_recompile_limit(error):
                    raise
                raise CaptureError(
                    "expected a model whose graphs can be captured, got endless"
                    " recompiles; pass inputs of few shapes"
                ) from error

    def trace(self, *args: Any, **kwargs: Any) -> Capture:
        """Capture by running once without gradients, buffers kept; returns self.

        Raises:
            CaptureError: no graph came out, or the model failed.
        """
        grad = self.model.training and torch.is_grad_enabled()
        with torch.set_grad_enabled(grad), buffers_kept(self.model):
            self(*args, **kwargs)
        if not self.graphs:
            raise CaptureError(
                "expected a model that torch.compile can capture, got no graph;"
                " is compilation disabled (TORCHDYNAMO_DISABLE)?"
            )
        return self

    @property
    def regions(self) -> list[Region]:
        """The regions of all graphs, the first of each name."""
        found: dict[str, Region] = {}
        for _, layer in self.layers:
            for region in layer.regions:
                found.setdefault(region.site.name, region)
        return list(found.values())

    @property
    def sites(self) -> list[AttentionSite]:
        """The attention sites found so far."""
        return [r.site for r in self.regions]

    @property
    def declined(self) -> list[Decline]:
        """What was declined so far, each once."""
        return list(dict.fromkeys(d for g in self.graphs for d in g.matched.declined))

    def plan(self, entries: dict[str, Entry]) -> Plan:
        """A plan of ``entries`` for this model, parameters at their start.

        Raises:
            CaptureError: the model has no attention.
        """
        if not self.sites:
            raise CaptureError(
                "expected a model with softmax attention, found none;"
                " attnpass.find_sites(model, ...) says what was declined"
            )
        plan = Plan(entries).initialise(self.sites)
        self.bind_plan(plan)
        return plan

    def bind_plan(self, plan: Plan) -> None:
        """Tell ``plan`` which parameters make its sites."""
        places = self._names.places
        for _, layer in self.layers:
            for region in layer.regions:
                plan.bind_site(region.site, layer.parameters[region.site.name], places)

    def use(self, plan: Plan | None, *, strict: bool = False) -> dict[str, str]:
        """Run under ``plan`` from now on; returns site name to form for what is rewritten.

        Raises:
            PlanError: with ``strict``, an entry that does not fit.
        """
        if plan is None:
            self.choose(lambda site, weights: None)
            return {}
        if self.graphs:
            for error in plan.absent({s.name for s in self.sites}):
                warn_or_raise(error, strict)
        at = {
            name: given[0].device
            for _, layer in self.layers
            for name, given in layer.parameters.items()
            if given
        }
        modules = self.choose(
            lambda site, weights: plan.module(
                site, strict=strict, device=at.get(site.name), weights=weights
            ),
            lambda name: plan.deltas.get(name, {}),
            plan.content,
        )
        for _, layer in self.layers:
            for name in modules.keys() & layer.parameters.keys():
                plan.warn_if_weights_changed(name, layer.parameters[name])
        return {name: plan.sites[name].form for name in modules}

    def choose(
        self,
        chosen: Chooser,
        changes: Changes = lambda name: {},
        content: Callable[[str], Hashable] = lambda name: object(),
    ) -> dict[str, nn.Module]:
        """Run what ``chosen`` gives for every site of every graph; returns it by site name."""
        self._choice.modules, self._choice.changes = chosen, changes
        self._choice.content = content
        found: dict[str, nn.Module] = {}
        for graph, layer in self.layers:
            found |= graph.use(layer)
        return found

    @property
    def layers(self) -> list[tuple[CapturedGraph, Layer]]:
        """Every layer met so far with its graph."""
        return [(graph, layer) for graph in self.graphs for layer in graph.layers.values()]

    def projections(self) -> dict[str, dict[str, Tensor]]:
        """Per site the weights of its q, k, v and output projections, by path in the model.

        A weight that more than one site uses, or a graph without the site, is left out.
        """
        found: dict[str, dict[str, Tensor]] = {}
        shared: set[int] = set()
        for _, layer in self.layers:
            own = {p for paths in layer.projections.values() for p in paths}
            shared |= {id(w) for p, w in layer.weights.items() if p not in own}
            for site, paths in layer.projections.items():
                found.setdefault(site, {}).update({p: layer.weights[p] for p in paths})
        uses = Counter(id(w) for own in found.values() for w in own.values())
        shared |= {at for at, count in uses.items() if count > 1}
        return {
            site: {p: w for p, w in own.items() if id(w) not in shared}
            for site, own in found.items()
        }

    def use_modules(self, modules: dict[str, nn.Module]) -> None:
        """Run ``modules`` (site name to module) from now on, the same in every graph."""
        self.choose(lambda site, weights: modules.get(site.name))

    @contextmanager
    def sharing(self, limit: int) -> Iterator[None]:
        """Inside, what plans have in common on one batch is computed once.

        ``limit``: bytes of values that are kept from one plan to the next.
        """
        self._shared = Shared(limit)
        try:
            yield
        finally:
            self._shared = None

    def record(self, *args: Any, **kwargs: Any) -> Any:
        """Run once and keep every graph's inputs and outputs in ``graph.last``."""
        self._keep, self.calls = True, 0
        try:
            return self(*args, **kwargs)
        finally:
            self._keep = False


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards the model's buffers are what they were: in training mode running writes them."""
    trains = any(module.training for module in model.modules())
    before = [(b, b.detach().clone()) for b in model.buffers()] if trains else []
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


@contextmanager
def frozen_parameters(model: nn.Module) -> Iterator[None]:
    """Inside, no parameter needs gradients."""
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in trained:
            p.requires_grad_(False)
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


def fresh_entry(model: nn.Module) -> Callable[..., Any]:
    """A function that calls ``model``, with code of its own.

    Dynamo counts recompiles per code object: captures of one class must not share the model's.
    """

    def entry(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    code = entry.__code__.replace(co_name=f"attnpass_capture_{next(_number)}")
    return types.FunctionType(code, entry.__globals__, code.co_name, None, entry.__closure__)
