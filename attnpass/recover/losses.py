"""What a converted model is taught: losses against the original, per site or for the whole.

Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from attnpass.batch import Batch
from attnpass.capture import Capture, Graph, Layer, Seen, watched
from attnpass.errors import OptionError
from attnpass.graph import op_name
from attnpass.matching import Region
from attnpass.plan import Plan
from attnpass.rewrite import Branch, branch
from attnpass.torch_internals import pytree

TEMPERATURE = 2.0
"""Of the distributions that are compared (1503.02531)."""

LEAST = -1e4
"""Logit that stands for -inf."""

FEATURES = 1.0
"""Weight of the features beside the outputs."""

WIDTH = 64
"""Columns of a weight from which on its learning rate shrinks."""

Key = tuple[str, str]
"""Whose plan and which site; empty where there is but one."""


@dataclass
class Unit:
    """Parameters that one loss trains: clipped together.

    Attributes:
        values: parameter with the size of what it changes, and whether it belongs to a delta.
    """

    values: list[tuple[nn.Parameter, float, bool]]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All of them, in a fixed order."""
        return [p for p, _, _ in self.values]


def _unit(plan: Plan, sites: Collection[str], weights: Mapping[str, Tensor]) -> Unit:
    """What may learn at ``sites``: forms' parameters and deltas that are not frozen."""
    found = []
    for site in sites:
        for value in plan.values.get(site, {}).values():
            if plan.sites[site].form == "skipat":
                size = _size(value) * _narrow(value)
            else:
                size = _size(value, 0.02 if value.dim() > 1 else 0.3)
            found.append((value, size, False))
        for path, delta in plan.deltas.get(site, {}).items():
            size = _size(weights[path]) * _narrow(weights[path])
            if delta.full is not None:
                found.append((delta.full, size, True))
            else:
                assert delta.left is not None and delta.right is not None
                rank, columns = delta.right.shape
                found.append((delta.left, size * math.sqrt(columns / rank), True))
                found.append((delta.right, _size(delta.right), True))
    return Unit([(p, size, late) for p, size, late in found if p.requires_grad])


def _dtypes(model: nn.Module) -> set[torch.dtype]:
    """Of its floating parameters."""
    return {p.dtype for p in model.parameters() if p.is_floating_point()}


def _narrow(weight: Tensor) -> float:
    """Changes of all columns add up: the wider, the smaller each (muP, 2203.03466)."""
    return min(math.sqrt(WIDTH / weight.shape[-1]), 1.0)


def _size(x: Tensor, least: float = 0.02) -> float:
    """Root mean square, of which a learning rate is a part."""
    return max(float(x.detach().float().square().mean().sqrt()), least)


class Local:
    """Every converted site of several plans for itself, fed by the original model."""

    name, share = "local", 1.0

    def __init__(self, capture: Capture, plans: Mapping[str, Plan]) -> None:
        self.capture, self.plans = capture, plans
        self.dtypes = _dtypes(capture.model)
        weights = {p: w for own in capture.projections().values() for p, w in own.items()}
        names = [s.name for s in capture.sites]
        self.units = {
            (label, site): _unit(plan, [site], weights)
            for label, plan in plans.items()
            for site in names
            if site in plan.sites and plan.sites[site].form != "softmax"
        }
        self.units = {at: unit for at, unit in self.units.items() if unit.values}
        self._branches: dict[tuple[int, str, str], tuple[Branch, list[Any]]] = {}

    def losses(self, batch: Batch) -> Iterator[tuple[Key, Tensor]]:
        """Per unit the relative squared error of its block output, one after the other.

        A site that runs several times comes several times.
        """
        with torch.no_grad():
            _, ran = watched(self.capture, batch, self._wanted)
        for graph, layer, seen in ran:
            for region in layer.regions:
                for label in self.plans:
                    if (label, region.site.name) in self.units:
                        loss = self._loss(graph, layer, region, label, seen)
                        yield (label, region.site.name), loss

    def _wanted(self, graph: Graph, layer: Layer) -> set[str]:
        found = set()
        for region in layer.regions:
            for label in self.plans:
                if (label, region.site.name) in self.units:
                    made, _ = self._branch(graph, layer, region, label)
                    found |= {n.name for n in (*made.reads, made.target)}
        return found

    def _branch(
        self, graph: Graph, layer: Layer, region: Region, label: str
    ) -> tuple[Branch, list[Any]]:
        """The site's branch, and per read the delta that is added, or None."""
        key = (id(layer), region.site.name, label)
        if key not in self._branches:
            plan = self.plans[label]
            module = plan.module(region.site, strict=True, weights=layer.weights)
            assert module is not None
            inputs = graph.normal.graph.find_nodes(op="placeholder")
            deltas = {
                inputs[layer.positions[path]]: delta
                for path, delta in plan.deltas.get(region.site.name, {}).items()
            }
            made = branch(graph.normal, region, module, list(deltas))
            self._branches[key] = made, [deltas.get(n) for n in made.reads]
        return self._branches[key]

    def _loss(self, graph: Graph, layer: Layer, region: Region, label: str, seen: Seen) -> Tensor:
        made, deltas = self._branch(graph, layer, region, label)
        values = [
            seen[n.name] if d is None else d.add(seen[n.name])
            for n, d in zip(made.reads, deltas, strict=True)
        ]
        got, keep = made.graph(*values)
        own = keep is not None and region.site.kind == "self"
        rows = _padding([keep] if own else [], got)
        return relative(got, seen[made.target.name], rows)


def relative(got: Tensor, want: Tensor, rows: Tensor | None = None) -> Tensor:
    """``|got - want|^2 / |want|^2`` in float32, over ``rows`` and where ``want`` is finite."""
    got, want = got.float(), want.float()
    sound = torch.isfinite(want) if rows is None else torch.isfinite(want) & rows
    error = torch.where(sound, got - want, 0.0).square().sum()
    return error / torch.where(sound, want, 0.0).square().sum().clamp_min(1e-12)


class Global:
    """The whole converted model on the original's outputs and features.

    Features are what projections outside the sites read (hidden states, as in 1909.10351).
    """

    name, share = "global", 0.5

    def __init__(
        self,
        model: nn.Module,
        teacher: Capture,
        plan: Plan,
        outputs: str,
        allow: Collection[str],
    ) -> None:
        self.teacher, self.outputs = teacher, outputs
        self.dtypes = _dtypes(model)
        self.student = Capture(model, allow=allow)
        self.student.use(plan)
        weights = {p: w for own in teacher.projections().values() for p, w in own.items()}
        converted = [n for n, e in plan.sites.items() if e.changes]
        self.unit = _unit(plan, converted, weights)
        self.units: dict[Key, Unit] = {("", ""): self.unit}

    def losses(self, batch: Batch) -> Iterator[tuple[Key, Tensor]]:
        """The one unit with its loss.

        Raises:
            OptionError: the model returns no floating tensor.
        """
        with torch.no_grad():
            want, features, _ = _answers(self.teacher, batch)
        got, own, masks = _answers(self.student, batch)
        loss = self._output(got, want, masks)
        # what is routed another way has other rows
        both = [n for n, x in features.items() if n in own and own[n].shape == x.shape]
        for name in both:
            x, rows = own[name], _padding(masks, own[name])
            loss = loss + FEATURES / len(both) * relative(x, features[name], rows)
        yield ("", ""), loss

    def _output(self, got: list[Tensor], want: list[Tensor], masks: list[Tensor]) -> Tensor:
        if not want:
            raise OptionError("expected a model that returns a floating tensor, got none")
        total = got[0].new_zeros((), dtype=torch.float32)
        for a, b in zip(got, want, strict=True):
            rows = _padding(masks, a)
            if self.outputs == "logits" and a.dim() > 1 and a.shape[-1] > 1:
                total = total + _divergence(a, b, rows)
            else:
                total = total + relative(a, b, rows)
        return total


def _divergence(got: Tensor, want: Tensor, rows: Tensor | None) -> Tensor:
    """Kullback-Leibler divergence of logits ``[..., classes]``, mean over ``rows``."""
    if rows is not None:
        got, want = (x[rows[..., 0]] for x in (got, want))
    t = TEMPERATURE
    # classes that are ruled out by -inf have no divergence, not NaN
    q, p = ((x.float() / t).clamp_min(LEAST).log_softmax(-1).flatten(0, -2) for x in (got, want))
    return t * t * nn.functional.kl_div(q, p, reduction="batchmean", log_target=True)


def judge(objective: Local | Global, batch: Batch) -> dict[Key, float]:
    """The mean loss of every unit, nothing kept for gradients."""
    found: dict[Key, list[float]] = {}
    with torch.no_grad():
        for key, loss in objective.losses(batch):
            found.setdefault(key, []).append(float(loss))
    return {key: sum(losses) / len(losses) for key, losses in found.items()}


Answers = tuple[list[Tensor], dict[str, Tensor], list[Tensor]]
"""Outputs, features by the weight that reads them, masks."""


def _answers(capture: Capture, batch: Batch) -> Answers:
    """A model's floating outputs, its features, and the masks that its forms were given."""
    out, ran = watched(capture, batch, lambda g, layer: {*_features(g, layer), *_masks(layer)})
    features, masks, read = dict[str, Tensor](), list[Tensor](), Counter[str]()
    for graph, layer, seen in ran:
        masks += [seen[name] for name in _masks(layer)]
        for name, weight in _features(graph, layer).items():
            read[weight] += 1
            if name in seen:
                features[f"{weight} {read[weight]}"] = seen[name]
    leaves = pytree.tree_leaves(out)
    return [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()], features, masks


def _features(graph: Graph, layer: Layer) -> dict[str, str]:
    """The nodes that projections outside the sites read, with the first weight that reads each.

    Nodes are named anew in every capture, weights are not.
    """
    inside = {n for r in layer.regions for n in (*r.parameters, *r.output)}
    inputs = graph.normal.graph.find_nodes(op="placeholder")
    paths = {inputs[i]: path for path, i in layer.positions.items()}
    found: dict[str, str] = {}
    for node in graph.normal.graph.nodes:
        if node.op == "call_function" and op_name(node) in ("linear", "addmm", "mm"):
            x, weight = node.args[op_name(node) == "addmm" :][:2]
            while weight.op == "call_function" and len(weight.all_input_nodes) == 1:
                weight = weight.all_input_nodes[0]  # what it is a view of
            if weight.op == "placeholder" and weight not in inside:
                found.setdefault(x.name, paths.get(weight, weight.name))
    return found


def _masks(layer: Layer) -> list[str]:
    """The nodes of the masks that a layer's forms of self-attention are given."""
    assert isinstance(layer.active, fx.GraphModule)
    calls = [
        node
        for node in layer.active.graph.find_nodes(op="call_module")
        if layer.regions[int(node.target.rpartition(".")[2])].site.kind == "self"
    ]
    return list(dict.fromkeys(n.args[-1].name for n in calls if isinstance(n.args[-1], fx.Node)))


def _padding(masks: Sequence[Tensor], x: Tensor) -> Tensor | None:
    """Rows of ``x [B, T, D]``, or ``[T, B, D]``, that are no padding, where all masks agree.

    ``[B, T, 1]`` or ``[T, B, 1]``. Where both orders fit, the batch is first.
    """
    if x.dim() != 3:
        return None
    for first, (b, t) in enumerate((x.shape[:2], x.shape[1::-1])):
        shapes = ((1, 1, 1, t), (b, 1, 1, t))
        fit = [m for m in masks if m.dtype == torch.bool and m.shape in shapes]
        if fit:
            if any(not torch.equal(m, fit[0]) for m in fit[1:]):
                return None
            rows = fit[0][:, 0, 0, :, None].expand(b, -1, 1)
            return rows.transpose(0, 1) if first else rows
    return None
