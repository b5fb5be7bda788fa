"""Random valid calls of the registered operators, and what they must give, from one seed."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attnpass.kernels import reference
from hostile_operators.memory import guarded, strided

FLOATS = (torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8)
H = (*reference.H_FUNCTIONS, "sigmoid_tanh")
BLOCKS = (1, 2, 7, 16, 33, 128, 256, 65536)
WAYS = ("direct", "python", "tiled")
"""Through C++ alone where that serves a call, to the same kernels from Python, by plain torch."""

LEAVES = ("q", "k", "v", "bias", "tau", "offset", "gain")


@dataclass
class Call:
    """One call of ``attnpass::<operator>``.

    ``fault``: why it is not valid, "" if it is; ``way``: one of `WAYS`.
    """

    operator: str
    given: dict[str, Any]
    fault: str = ""
    grad: Tensor | None = None
    way: str = "direct"
    threads: int = 1

    def __str__(self) -> str:
        shown = {n: describe(x) for n, x in self.given.items() if x is not None}
        text = ", ".join(f"{n}={x}" for n, x in shown.items())
        way = f"{self.way}, {self.threads} threads"
        return f"{self.operator}({text}); {way}; fault: {self.fault or None}"


def describe(x: Any) -> str:
    if not isinstance(x, Tensor):
        return repr(x)
    dtype = str(x.dtype).removeprefix("torch.")
    steps = x.stride() if x.layout == torch.strided and not x.is_nested else x.layout
    shape = "nested" if x.is_nested else list(x.shape)
    return f"{dtype}{shape}/{steps}" + ("" if x.device.type == "cpu" else f"@{x.device}")


class Draw:
    """Random arguments of valid calls, with at most ``most`` queries and keys.

    ``blocks``: the sizes that a block of a tile may have.
    """

    def __init__(self, seed: str, most: int = 150, blocks: Sequence[int] = BLOCKS) -> None:
        self.pick, self.most, self.blocks = random.Random(seed), most, blocks
        torch.manual_seed(self.pick.getrandbits(62))

    def often(self, share: float = 0.5) -> bool:
        return self.pick.random() < share

    def length(self) -> int:
        few, many = self.pick.randint(1, 40), self.pick.randint(1, self.most)
        return self.pick.choice([0, 1, 2, few, few, few, many])

    def tensor(self, shape: list[int] | tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self.place(torch.randn(tuple(shape), dtype=torch.float64).to(dtype))

    def place(self, x: Tensor) -> Tensor:
        x = strided(self.pick, x)
        return x if x.is_neg() else guarded(self.pick, x)

    def broadcast(self, *shape: int, least: int = 0) -> list[int]:
        rank = self.pick.randint(least, 4)
        return [n if self.often(0.6) else 1 for n in shape][4 - rank :]

    def maybe(self, shape: list[int], share: float = 0.4) -> Tensor | None:
        return self.tensor(shape, self.pick.choice(FLOATS)) if self.often(share) else None

    def keep(self, shape: list[int]) -> Tensor | None:
        share = self.pick.choice([0.0, 0.3, 0.8, 1.0])
        return self.place(torch.rand(shape) < share) if self.often() else None

    def tile(self) -> list[int]:
        blocks = [self.pick.choice(self.blocks) for _ in range(2)]
        switches = [self.pick.randint(0, 1), self.pick.randint(0, 1)]
        full = [*blocks, 4, 2, self.pick.choice([1, 2, 9]), *switches]
        return full[: self.pick.randint(0, 7)]

    def pointwise(self) -> dict[str, Any]:
        dtype = self.pick.choice(FLOATS)
        g, b = self.pick.choice([0, 1, 1, 2, 3]), self.pick.choice([0, 1, 1, 2, 3])
        h = g * self.pick.choice([0, 1, 1, 2, 3])
        t, s = self.length(), self.length()
        s = t if self.often() else s
        d, dv = (self.pick.choice([0, 1, 3, 8, 16, 17, 32, 65]) for _ in range(2))
        bias = None
        if self.often():
            x = torch.randn(self.broadcast(b, h, t, s), dtype=torch.float64)
            dead = torch.rand(x.shape) < self.pick.choice([0.0, 0.3, 1.0])
            bias = self.place(x.masked_fill(dead, -math.inf).to(self.pick.choice(FLOATS)))
        lengths = None
        if self.often(0.3):
            edge = self.pick.choice([s + 3, 127])
            lengths = self.place(torch.randint(-3, edge, (b,)).to(self.pick.choice(WHOLE)))
        tau = self.maybe([h])
        return {
            **{"q": self.tensor((b, h, t, d), dtype), "k": self.tensor((b, g, s, d), dtype)},
            **{"v": self.tensor((b, g, s, dv), dtype), "bias": bias},
            "keep": self.keep(self.broadcast(b, h, t, s)),
            "tau": None if tau is None else self.place(tau.abs().clamp(0.3, 2.0)),
            **{n: self.maybe(self.broadcast(b, h, t, 1)) for n in ("offset", "gain")},
            "scale": self.pick.choice([max(d, 1) ** -0.5, 0.1, 0.0, -0.2]),
            **{"h": self.pick.choice(H), "causal": self.often(0.4)},
            **{"tile": self.tile(), "grad_tile": self.tile()},
            **{"slopes": self.maybe([h], 0.2), "lengths": lengths},
            "window": self.pick.choice([0, 0, 0, 1, 3, t + s, 2**62]),
        }

    def softmax(self) -> dict[str, Any]:
        names = "q", "k", "v", "bias", "keep", "scale", "causal", "tile", "grad_tile"
        given = self.pointwise()
        return {name: given[name] for name in names}

    def hydra(self) -> dict[str, Any]:
        dtype, causal = self.pick.choice(FLOATS), self.often(0.4)
        b, h = self.pick.choice([0, 1, 2, 3]), self.pick.choice([0, 1, 1, 2, 3])
        t, s, d = self.length(), self.length(), self.pick.choice([0, 1, 3, 8, 16, 17, 32, 65])
        s = t if causal else s
        # the unit of a single feature is constant: its gradient is nothing but rounding
        d = 2 if h * d == 1 else d
        wide = [self.pick.choice([1, b]), 1, 1, self.pick.choice([s, s, 1])]
        return {
            "q": self.tensor((b, h, t, d), dtype),
            **{n: self.tensor((b, h, s, d), dtype) for n in ("k", "v")},
            **{"keep": self.keep(wide), "gain": self.maybe([1, h, 1, d])},
            **{"causal": causal, "eps": self.pick.choice([1e-6, 1e-2, 1e-30])},
            "tile": self.tile(),
        }

    def call(self) -> Call:
        """A valid call of one of the operators, none of a backward."""
        operator = self.pick.choice(["pointwise", "pointwise", "softmax", "softmax", "hydra"])
        given = getattr(self, operator)()
        width = given["v"].shape[3]
        grad = self.tensor((*given["q"].shape[:3], width), given["q"].dtype)
        threads = self.pick.choice([1, 1, 2, 3])
        way = self.pick.choice((*WAYS, "direct"))
        return Call(operator, given, grad=grad, way=way, threads=threads)


def backward(call: Call) -> Call:
    """The call of the operator's backward with the same arguments."""
    given = {"grad": call.grad, **call.given}
    if call.operator == "softmax":
        q = given["q"]
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        rows = {n: torch.randn(q.shape[:3], dtype=wide) for n in ("lse", "delta")}
        first = {n: given[n] for n in ("grad", "q", "k", "v", "bias", "keep")}
        last = {"scale": given["scale"], "causal": given["causal"], "tile": given["grad_tile"]}
        given = {**first, **rows, **last, "needs_bias": True}
    if call.operator == "pointwise":
        tile = given.pop("grad_tile")
        order = list(given)
        where = order.index("tile")
        given["tile"] = tile
        items = [(n, given[n]) for n in order]
        given = dict([*items[: where + 1], ("needs_bias", True), *items[where + 1 :]])
    return replace(call, operator=f"{call.operator}_backward", given=given)


def expected(call: Call) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients in float64, by the reference and autograd."""
    x = dict(call.given)
    leaves = {n: x[n] for n in LEAVES if x.get(n) is not None}
    leaves = {n: y.detach().double().clone().requires_grad_() for n, y in leaves.items()}
    x |= leaves
    if x["q"].shape[1] == 0:
        # the reference divides by the number of key heads, which may be 0, too
        want = x["q"].new_zeros((*x["q"].shape[:3], x["v"].shape[3]), requires_grad=True)
    elif call.operator == "hydra":
        want = reference.hydra(
            *(x[n] for n in ("q", "k", "v", "keep", "gain")), causal=x["causal"], eps=x["eps"]
        )
    elif call.operator == "softmax":
        want = _softmax(x)
    else:
        want = _pointwise(x)
    found = torch.autograd.grad(
        want, list(leaves.values()), call.grad.double(), materialize_grads=True, allow_unused=True
    )
    return want.detach(), dict(zip(leaves, found, strict=True))


def _softmax(x: dict[str, Any]) -> Tensor:
    """Rows without a kept key are 0."""
    keep = reference.kept(x["keep"], x["causal"], x["q"], x["k"])
    keep = keep if x["bias"] is None else keep & (x["bias"] != -math.inf)
    bias = None if x["bias"] is None else x["bias"].masked_fill(x["bias"] == -math.inf, 0.0)
    given = (x["q"], x["k"], x["v"], bias, keep)
    out = reference.softmax(*given, scale=x["scale"], causal=x["causal"], fill=-1e30)
    return out.masked_fill(~keep.any(-1, keepdim=True), 0.0)


def _pointwise(x: dict[str, Any]) -> Tensor:
    t, s = x["q"].shape[2], x["k"].shape[2]
    ahead = torch.arange(t)[:, None] - torch.arange(s)
    bias, keep = x["bias"], x["keep"]
    if x["slopes"] is not None:
        alibi = -x["slopes"].double().view(-1, 1, 1) * ahead.abs()
        bias = alibi if bias is None else bias + alibi
    near = torch.ones(1, 1, t, s, dtype=torch.bool)
    if x["window"]:
        near = near & (ahead.abs() < x["window"])
    if x["lengths"] is not None:
        near = near & (torch.arange(s) < x["lengths"].long().view(-1, 1, 1, 1))
    keep = near if keep is None else near & keep
    h = "sigmoid" if x["h"] == "sigmoid_tanh" else x["h"]
    terms = (x["q"], x["k"], x["v"], bias, keep, x["tau"], x["offset"], x["gain"])
    return reference.pointwise(*terms, scale=x["scale"], h=h, causal=x["causal"])
