"""One attention call of a given shape: random inputs, any tile, and whether its result is right.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from attnpass import forms
from attnpass.batch import call
from attnpass.capture import Capture
from attnpass.errors import CaptureError, OptionError
from attnpass.kernels import ops, reference, torch_whole
from attnpass.kernels.activations import SOFTMAX
from attnpass.kernels.call import PointwiseCall
from attnpass.kernels.select import choose, choose_softmax, default_tile, has_kernel
from attnpass.kernels.tile import ShapeClass, Tile
from attnpass.site import AttentionSite
from attnpass.task import Task

ALLOWED = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}
"""Largest relative error (norm over norm, against float64) of a candidate, per dtype."""

ROWS = 64
"""Query rows whose results are checked."""


@dataclass(frozen=True)
class Shape:
    """One attention call to be tuned: sizes as met, not rounded.

    Attributes:
        batch: B. heads: H. kv_heads: G. queries: T. keys: S. head_dim: d. value_dim: of values.
        dtype: ``float32``, ``bfloat16`` or ``float16``. h: the pointwise function,
            or ``softmax``.
        causal: keep only s <= t. mask: ``none``, ``columns`` or ``rows``.
        direction: ``forward``, or ``backward`` for both together. device: ``cpu`` or ``cuda``.
    """

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int
    value_dim: int
    dtype: str = "float32"
    h: str = "sigmoid"
    causal: bool = False
    mask: str = "none"
    direction: str = "forward"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.dtype not in ALLOWED:
            raise OptionError(f"expected dtype of {', '.join(ALLOWED)}, got {self.dtype!r}")
        if self.h not in (SOFTMAX, *reference.H_FUNCTIONS):
            known = ", ".join((SOFTMAX, *reference.H_FUNCTIONS))
            raise OptionError(f"expected h of {known}, got {self.h!r}")
        if self.mask not in ("none", "columns", "rows"):
            raise OptionError(f"expected mask of none, columns, rows, got {self.mask!r}")
        there = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
        if self.device not in there:
            raise OptionError(f"expected device of {', '.join(there)}, got {self.device!r}")
        sizes = (self.batch, self.heads, self.queries, self.keys, self.head_dim, self.value_dim)
        if min(sizes) < 1 or self.kv_heads < 1 or self.heads % self.kv_heads:
            raise OptionError(
                f"expected sizes >= 1 and heads a multiple of kv heads, got {asdict(self)}"
            )

    @property
    def kind(self) -> ShapeClass:
        """The class of shapes that shares this one's tile."""
        b, t, s = self.batch, self.queries, self.keys

        def empty(*sizes: int) -> Tensor:
            return torch.empty(sizes, dtype=getattr(torch, self.dtype), device="meta")

        q, k = empty(b, self.heads, t, self.head_dim), empty(b, 1, s, self.head_dim)
        rows = {"none": None, "columns": 1, "rows": 2}[self.mask]
        keep = None if rows is None else empty(1, 1, rows, s)
        v = empty(b, 1, s, self.value_dim)
        kind = ShapeClass.of(q, k, v, None, keep, self.h, self.causal, self.direction)
        assert kind is not None
        return kind

    def towards(self, direction: str) -> Shape:
        """The same call in another direction."""
        return replace(self, direction=direction)

    def default(self) -> Tile:
        """The tile of the fused operator where nothing was measured."""
        dtype = getattr(torch, self.dtype)
        causal = self.causal * self.queries
        return default_tile(self.device, self.head_dim, self.direction, dtype, causal=causal)

    @classmethod
    def parse(cls, text: str, **more: Any) -> Shape:
        """The shape of ``B,H,T,S,d``.

        Raises:
            OptionError: not five whole numbers.
        """
        try:
            b, h, t, s, d = (int(x) for x in text.split(","))
        except ValueError:
            raise OptionError(
                f"expected --shape B,H,T,S,d, for example 1,12,1024,1024,64, got {text!r}"
            ) from None
        return cls(b, h, h, t, s, d, d, **more)


class Call:
    """One attention call with random inputs, under any tile. Logits have a deviation near 1."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        dtype = getattr(torch, shape.dtype)
        b, t, s = shape.batch, shape.queries, shape.keys

        def heads(length: int, n: int, width: int) -> Tensor:
            x = torch.randn(b, length, n, width, generator=draw).to(shape.device, dtype)
            x = x.transpose(1, 2)
            return x.requires_grad_(shape.direction == "backward")

        self.shape = shape
        self.q = heads(t, shape.heads, shape.head_dim)
        self.k = heads(s, shape.kv_heads, shape.head_dim)
        self.v = heads(s, shape.kv_heads, shape.value_dim)
        self.grad = heads(t, shape.heads, shape.value_dim).detach()
        self.keep: Tensor | None = None
        if shape.mask != "none":
            rows = t if shape.mask == "rows" else 1
            self.keep = torch.rand(b, 1, rows, s, generator=draw).to(shape.device) < 0.8
            self.keep[..., 0] = True  # a row without any key has no softmax
        self.offset = torch.full((1, 1, 1, 1), -math.log(s), device=shape.device)
        self.gain = torch.ones(1, 1, 1, 1, device=shape.device)
        self.rest = (shape.head_dim**-0.5, shape.h, shape.causal)
        self.compiled: Callable[..., Tensor] | None = None

    def default(self) -> Tile:
        """The tile that runs where nothing was measured."""
        if self.shape.h == SOFTMAX:
            trained = self.shape.direction == "backward"
            return choose_softmax(
                *(self.q, self.shape.queries, self.shape.keys, self.rest[0]),
                causal=self.shape.causal,
                trained=trained,
            )
        if self.shape.direction == "forward":
            return choose(self.q, self.k, causal=self.shape.causal)
        return self.shape.default()

    def forward(self, tile: Tile) -> Tensor:
        """``[B, H, T, dv]`` under a tile; of the backward alone where that is tuned."""
        if self.shape.h == SOFTMAX:
            return self._softmax(tile)
        inputs: Any = (self.q, self.k, self.v, None, self.keep, None, self.offset, self.gain)
        if tile.implementation == "aten":
            if self.compiled is None:
                # a function of its own: recompiles are counted per code object
                self.compiled = torch.compile(
                    lambda *a: torch_whole.pointwise(PointwiseCall(*(*a, Tile("aten")))),
                    dynamic=False,
                )
            return self.compiled(*inputs, *self.rest)
        other = replace(self.shape, direction="forward").default()
        tiles = (tile, tile) if self.shape.direction == "forward" else (other, tile)
        out: Tensor = ops.pointwise(*inputs, *self.rest, *(x.as_list() for x in tiles))
        return out

    def _softmax(self, tile: Tile) -> Tensor:
        """Exact softmax under a tile; plain ATen is torch's own fused operator."""
        shape = self.shape
        backward = {str(shape.kind): tile} if shape.direction == "backward" else {}
        if backward and tile.implementation == "fused":
            tile = replace(shape, direction="forward").default()
        form = forms.Softmax(scale=self.rest[0], causal=shape.causal, tile=tile, tiles=backward)
        out: Tensor = form(self.q, self.k, self.v, None, self.keep)
        return out

    def run(self, tile: Tile) -> list[Tensor]:
        """The output, or the gradients of q, k and v."""
        if self.shape.direction == "forward":
            with torch.no_grad():
                return [self.forward(tile)]
        return list(torch.autograd.grad(self.forward(tile), (self.q, self.k, self.v), self.grad))

    def sample(self, result: list[Tensor]) -> list[Tensor]:
        """The part of a result that is checked: some rows, or the first group's gradients."""
        if self.shape.direction == "forward":
            return [result[0][:, :, self.rows()]]
        group = self.shape.heads // self.shape.kv_heads
        return [x[:1, :n] for x, n in zip(result, (group, 1, 1), strict=True)]

    def expected(self) -> list[Tensor]:
        """The sample of a right result, in float64."""
        keep = self.q.new_ones((1, 1, self.shape.queries, self.shape.keys), dtype=torch.bool)
        keep = keep.tril() if self.shape.causal else keep
        keep = keep if self.keep is None else keep & self.keep
        softmax = self.shape.h == SOFTMAX
        rest: tuple[Any, ...] = () if softmax else (None, self.offset)
        more = {"fill": -math.inf} if softmax else {"h": self.shape.h}
        options: dict[str, Any] = {"scale": self.rest[0], "causal": False, **more}
        right = reference.softmax if softmax else reference.pointwise
        if self.shape.direction == "forward":
            rows = self.rows()
            q, k, v, keep = self.q[:, :, rows], self.k, self.v, keep[:, :, rows]
            return [right(q, k, v, None, keep, *rest, **options)]
        found = self.sample([self.q, self.k, self.v])
        q, k, v = wide = [x.detach().double().requires_grad_() for x in found]
        out = right(q, k, v, None, keep[:1], *rest, **options)
        return list(torch.autograd.grad(out, wide, self.grad[:1, : found[0].shape[1]].double()))

    def rows(self) -> Tensor:
        """The query rows that are checked: the first, the last, and some between."""
        found: Tensor = torch.linspace(0, self.shape.queries - 1, ROWS).round().long().unique()
        return found

    def error(self, tile: Tile, expected: list[Tensor]) -> float:
        """Relative error of a tile's result, the largest of its tensors."""
        pairs = zip(self.sample(self.run(tile)), expected, strict=True)
        return max(float((g.double() - w).norm() / w.norm().clamp_min(1e-30)) for g, w in pairs)


def shapes_of(
    task: Task,
    functions: Sequence[str] = (SOFTMAX, "sigmoid", "relu"),
    capture: Capture | None = None,
) -> list[Shape]:
    """The attention shapes of a task's examples, for each of the functions.

    Of exact softmax where there is another implementation than torch's own. ``capture``: of the
    task's model, where there is one; it runs under no plan afterwards.

    Raises:
        CaptureError: the model has no attention that these forms can take.
    """
    met = dict[Shape, None]()
    if capture is None:
        capture = call(Capture(task.model).trace, task.example)

    def noted(site: AttentionSite) -> nn.Module:
        module = forms.build("softmax", site)
        module.register_forward_pre_hook(lambda _, given: _note(met, given, site))
        return module

    capture.use_modules(
        {
            s.name: noted(s)
            for s in capture.sites
            if s.legal.get("sigmoid") is None and not (s.swapped or s.sink)
        }
    )
    with torch.no_grad():
        for batch, _ in task.served:
            call(capture, batch)
    capture.use(None)
    if not met:
        raise CaptureError(
            "expected attention that sigmoid or relu can take, found none;"
            " attnpass sites says what there is"
        )
    every = [replace(shape, h=h) for shape in met for h in functions]
    return [x for x in every if x.h != SOFTMAX or (x.device == "cpu" and has_kernel("pointwise"))]


def _note(met: dict[Shape, None], given: tuple[Any, ...], site: AttentionSite) -> None:
    """Add the shape of one call with q, k, v, bias, keep."""
    q, k, v, bias, keep = given
    causal = "causal" in site.mask
    kind = ShapeClass.of(q, k, v, bias, keep, "sigmoid", causal)
    if kind is not None and kind.dtype in ALLOWED:
        sizes = (q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3])
        rest = (kind.dtype, "sigmoid", causal, kind.mask, "forward", q.device.type)
        met[Shape(*sizes, v.shape[3], *rest)] = None
