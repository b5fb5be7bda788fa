"""How alike the attention blocks of a model are: CKA between layers (2301.02240, section 3).

CKA compares Z, a block's output after its projection, and A, the attention that the first token
(a class token, where there is one) pays to all keys. SkipAt can leave out layers that repeat the
one before them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnpass.batch import call
from attnpass.capture import Capture
from attnpass.errors import CaptureError, MeasureError
from attnpass.recover import MapSample, Observed, Sample, observe, rows_kept
from attnpass.site import AttentionSite
from attnpass.task import Task

FEWEST_ITEMS = 4
"""Items without which the unbiased estimate does not exist."""

Matrix = list[list[float | None]]
"""CKA by pair of layers; None where two layers have no common items, or keys."""


@dataclass(frozen=True)
class Similarities:
    """CKA between all layers of a model.

    Attributes:
        task: its name. sites: the layers, in the order of both matrices.
        outputs: CKA of Z. attention: CKA of A.
        suggested: the sites where SkipAt is legal whose Z is like that of the layer before.
    """

    task: str
    sites: list[str]
    outputs: Matrix
    attention: Matrix
    suggested: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The record as plain JSON types, the matrices under the paper's names."""
        return {
            "task": self.task,
            "sites": self.sites,
            "Z": self.outputs,
            "A": self.attention,
            "suggested": self.suggested,
        }


def cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of two sets of features ``[N, ...]`` of the same N items, at most 1.

    From the unbiased estimate of HSIC (2010.15327), which few items do not inflate; features that
    do not vary give NaN.

    Raises:
        MeasureError: fewer than four items.
    """
    n = x.shape[0]
    if n < FEWEST_ITEMS:
        raise MeasureError(
            f"expected at least {FEWEST_ITEMS} items to compare layers, got {n};"
            " give the task more calibration items"
        )
    grams = []
    for features in (x, y):
        flat = features.flatten(1).double()
        flat = flat - flat.mean(0)
        grams.append((flat @ flat.T).fill_diagonal_(0.0))
    k, m = grams
    own = _hsic(k, k) * _hsic(m, m)
    return _hsic(k, m) / math.sqrt(own) if own > 0 else math.nan


def _hsic(k: Tensor, m: Tensor) -> float:
    """The unbiased estimate from two Gram matrices without their diagonals."""
    n = k.shape[0]
    total = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2))
    total -= 2 / (n - 2) * (k.sum(0) * m.sum(0)).sum()
    return float(total / (n * (n - 3)))


def similarities(task: Task, least: float = 0.8) -> Similarities:
    """CKA of Z and of A between all layers of a task's model, and the layers SkipAt may leave out.

    Those are suggested whose Z has a CKA of ``least`` or more with that of the layer before.

    Raises:
        CaptureError: no attention. MeasureError: too few calibration items.
    """
    capture = call(Capture(task.model).trace, task.example)
    observed = observe(capture, list(task.calibration))
    outputs = _outputs(capture, observed)
    names = [s.name for s in capture.sites if s.name in outputs]
    if len(names) < 2:
        raise CaptureError(
            "expected at least two attention blocks whose outputs can be compared,"
            f" got {len(names)}"
        )
    sites = {s.name: s for s in capture.sites}
    attention = {n: _rows(sites[n], observed.samples.get(n, [])) for n in names}
    z = [[_compare(outputs[a], outputs[b]) for b in names] for a in names]
    a = [[_compare(attention[x], attention[y]) for y in names] for x in names]
    before = {r.site.name: r.previous.site.name for r in capture.regions if r.previous is not None}
    position = {name: i for i, name in enumerate(names)}
    like = {n: z[position[n]][position[before[n]]] for n in names if before.get(n) in position}
    suggested = [
        n
        for n, value in like.items()
        if value is not None and value >= least and sites[n].legal.get("skipat") is None
    ]
    return Similarities(task.name, names, z, a, suggested)


def _compare(x: Tensor | None, y: Tensor | None) -> float | None:
    """CKA where both exist, else None."""
    if x is None or y is None or x.shape[0] != y.shape[0]:
        return None
    value = cka(x, y)
    return None if math.isnan(value) else value


def _outputs(capture: Capture, observed: Observed) -> dict[str, Tensor]:
    """Per site the block's output ``[N, T, D]``, a layer's from the one that reads it."""
    out: dict[str, Tensor] = {}
    for region in capture.regions:
        pairs = observed.blocks.get(region.site.name, [])
        if pairs and region.previous is not None:
            pairs = [p for p in pairs if p[0].shape[1:] == pairs[0][0].shape[1:]]
            out[region.previous.site.name] = torch.cat([_kept(z, keep) for z, _, keep in pairs])
            out[region.site.name] = torch.cat([_kept(y, keep) for _, y, keep in pairs])
    return out


def _kept(x: Tensor, keep: Tensor | None) -> Tensor:
    """Outputs ``[B, T, D]``, zero in rows of padding."""
    padding = keep is not None and keep.dim() == 4 and keep.shape[1:] == (1, 1, x.shape[1])
    rows = rows_kept(keep) if padding else None
    return x if rows is None else x * rows


def _rows(site: AttentionSite, samples: list[Sample | MapSample]) -> Tensor | None:
    """Softmax weights of the first query over the keys, ``[N, H, S]``.

    Under a causal mask, which leaves the first query one key only, those of the last query.
    """
    rows, query = [], slice(-1, None) if "causal" in site.mask else slice(1)
    for s in samples:
        if isinstance(s, MapSample):
            return None
        k = s.k.repeat_interleave(s.q.shape[1] // s.k.shape[1], dim=1).double()
        x = s.q[:, :, query].double() @ k.transpose(-1, -2)
        x = x * (1.0 if site.scale is None else site.scale)
        x = x if s.bias is None else x + _row(s.bias, query)
        x = x if s.keep is None else x.masked_fill(~_row(s.keep, query), -math.inf)
        rows.append(x.softmax(-1).squeeze(2))
    return torch.cat(rows) if rows and len({x.shape[2] for x in rows}) == 1 else None


def _row(x: Tensor, query: slice) -> Tensor:
    """One query's row of a bias or mask ``[..., T, S]``, with all four axes."""
    return x.view((1,) * (4 - x.dim()) + x.shape)[:, :, query]
