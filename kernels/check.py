"""Whether the arguments of an operator make a valid call, asked before any kernel reads memory.

The kernels take every address from the sizes of q, k and v, every number from the type of q, and
read what they are given: a call that breaks a condition would read beyond a tensor, divide by zero
or add numbers that mean nothing. A call of any operator is valid if

1. every tensor is dense, lies on the device of q, and has its memory (a sharded model may have
   freed it);
2. q, k, v and grad have four axes and one of the dtypes ``FLOATS``, the same for all four;
3. the sizes of q, k and v agree: B everywhere, d in q and k, G and S in k and v;
4. grad has the shape of the output;
5. its tiles are sound, which ``Tile`` itself checks;
6. no forward-mode derivative is being taken: the operators have none, and it would come out as 0.

A call of the pointwise family is valid if moreover

7. the query heads H are a multiple of the key/value heads G, and G >= 1 where H > 0;
8. bias has a dtype of ``FLOATS``, keep is bool, and both broadcast to ``[B, H, T, S]``;
9. tau and slopes ``[H]``, offset and gain, which broadcast to ``[B, H, T, 1]``, have one, too;
10. lengths ``[B]`` has a dtype of ``WHOLE``; a length below 0 means 0, one beyond S means S;
11. h is known (softmax has an operator of its own), scale is finite in float32, window >= 0.

A call of hydra is valid if besides 1 to 6

12. k and v have the heads and the head dim of q, and T = S where the call is causal;
13. keep is bool ``[B|1, 1, 1, S|1]``, and gain ``[1, H, 1, d]`` has a dtype of ``FLOATS``;
14. eps is a normal number of float32, so that no norm is zero.

In a trace a size may be symbolic. It then passes every comparison, because comparing it would put
a guard on the user's graph; the call itself is checked again when it runs.
Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, dv value dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from attnpass.errors import ArgumentError
from attnpass.kernels.activations import EXACT, H
from attnpass.kernels.call import HydraCall, PointwiseCall
from attnpass.torch_internals import in_forward_mode

FLOATS = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64))
"""The dtypes of queries, keys, values and terms."""

WHOLE = frozenset((torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8))
"""The dtypes of lengths."""

_LEAST, _MOST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
_STRIDED = torch.strided


class _AnySize(int):
    """A symbolic size: equal to every other and a multiple of it."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    def __mod__(self, other: object) -> int:
        return 0

    def __repr__(self) -> str:
        return "?"

    def __format__(self, spec: str) -> str:
        return "?"

    __rmod__ = __mod__
    __hash__ = int.__hash__


_ANY = _AnySize(1)


def _sizes(x: Tensor, traced: bool) -> Sequence[int]:
    """The sizes of a tensor, in a trace with ``_ANY`` for each symbolic one."""
    return [n if type(n) is int else _ANY for n in x.shape] if traced else x.shape


def _refuse(expected: str, got: object) -> NoReturn:
    raise ArgumentError(f"expected {expected}, got {got}")


def _dense(name: str, x: Tensor, device: torch.device, traced: bool) -> None:
    """Condition 1."""
    if x.layout is not _STRIDED:
        _refuse(f"{name} as a dense tensor", x.layout)
    if x.device != device:
        _refuse(f"{name} on {device}, where q is", x.device)
    if not traced and x.numel() > 0 and x.untyped_storage().nbytes() == 0:
        _refuse(f"{name} with its memory", "a tensor whose memory was freed")


def _main(name: str, x: Tensor, device: torch.device, dtype: torch.dtype, traced: bool) -> None:
    """Conditions 1 and 2."""
    _dense(name, x, device, traced)
    if x.dim() != 4:
        _refuse(f"{name} with four axes", list(x.shape))
    if x.dtype is not dtype:
        _refuse(f"{name} in {dtype} like q", x.dtype)


def _inputs(
    q: Tensor, k: Tensor, v: Tensor, device: torch.device, traced: bool
) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """The sizes of q, k and v under conditions 1 to 3 and 6."""
    if in_forward_mode():
        _refuse("a call outside of forward-mode differentiation", "one in it (use backward)")
    dtype = q.dtype
    if dtype not in FLOATS:
        _refuse("q in float32, bfloat16, float16 or float64", dtype)
    _main("q", q, device, dtype, traced)
    _main("k", k, device, dtype, traced)
    _main("v", v, device, dtype, traced)
    q_sizes, k_sizes, v_sizes = _sizes(q, traced), _sizes(k, traced), _sizes(v, traced)
    b, _, _, d = q_sizes
    items, groups, keys, width = k_sizes
    if items != b or width != d:
        _refuse(f"k [{b}, G, S, {d}] for q {list(q.shape)}", list(k.shape))
    items, own_groups, own_keys, _ = v_sizes
    if items != b or own_groups != groups or own_keys != keys:
        _refuse(f"v [{b}, {groups}, {keys}, dv] for k {list(k.shape)}", list(v.shape))
    return q_sizes, k_sizes, v_sizes


def _floating(name: str, x: Tensor, device: torch.device, traced: bool) -> None:
    """Condition 1 and the dtype of a term."""
    _dense(name, x, device, traced)
    if x.dtype not in FLOATS:
        _refuse(f"{name} in float32, bfloat16, float16 or float64", x.dtype)


def _flags(name: str, x: Tensor, device: torch.device, traced: bool) -> None:
    """Condition 1 and the dtype of a mask."""
    _dense(name, x, device, traced)
    if x.dtype is not torch.bool:
        _refuse(f"{name} in torch.bool", x.dtype)


def _broadcasts(name: str, x: Tensor, full: tuple[int, ...], traced: bool) -> None:
    """Whether a term broadcasts to four sizes."""
    sizes = _sizes(x, traced)
    at = 4 - len(sizes)
    fits = at >= 0
    for n in sizes:
        if n != 1:
            fits = fits and n == full[at]
        at += 1
    if not fits:
        _refuse(f"{name} that broadcasts to {list(full)}", list(x.shape))


def _vector(name: str, x: Tensor, size: int, traced: bool) -> None:
    """Whether a term has one axis of a size."""
    if x.dim() != 1 or _sizes(x, traced)[0] != size:
        _refuse(f"{name} [{size}]", list(x.shape))


def pointwise(
    call: PointwiseCall, traced: bool = False, known: Sequence[str] = (*H, *EXACT)
) -> None:
    """Check a call of the pointwise family, whose h is one of ``known``.

    Raises:
        ArgumentError: a condition of a valid call does not hold.
    """
    device, bias, keep, offset, gain = call.q.device, call.bias, call.keep, call.offset, call.gain
    (b, heads, t, _), (_, groups, s, _), _ = _inputs(call.q, call.k, call.v, device, traced)
    if heads % groups if groups > 0 else heads > 0:
        _refuse(f"a number of key heads that divides the {heads} query heads", groups)
    if bias is not None:
        _floating("bias", bias, device, traced)
        _broadcasts("bias", bias, (b, heads, t, s), traced)
    if keep is not None:
        _flags("keep", keep, device, traced)
        _broadcasts("keep", keep, (b, heads, t, s), traced)
    if offset is not None:
        _floating("offset", offset, device, traced)
        _broadcasts("offset", offset, (b, heads, t, 1), traced)
    if gain is not None:
        _floating("gain", gain, device, traced)
        _broadcasts("gain", gain, (b, heads, t, 1), traced)
    if call.tau is not None:
        _floating("tau", call.tau, device, traced)
        _vector("tau", call.tau, heads, traced)
    if call.slopes is not None:
        _floating("slopes", call.slopes, device, traced)
        _vector("slopes", call.slopes, heads, traced)
    if call.lengths is not None:
        _dense("lengths", call.lengths, device, traced)
        if call.lengths.dtype not in WHOLE:
            _refuse("lengths in a dtype of whole numbers", call.lengths.dtype)
        _vector("lengths", call.lengths, b, traced)
    if call.h not in known:
        _refuse(f"h in {tuple(known)}", repr(call.h))
    _number("scale", call.scale, -_MOST)
    if isinstance(call.window, int) and call.window < 0:
        _refuse("window >= 0", call.window)


def _number(name: str, x: float, least: float) -> None:
    """Whether a number, unless it is symbolic, lies between ``least`` and float32's largest."""
    if isinstance(x, (int, float)) and not least <= x <= _MOST:
        _refuse(f"{name} from {least:.4g} to {_MOST:.4g}", x)


def gradient(grad: Tensor, q: Tensor, v: Tensor, traced: bool = False, name: str = "grad") -> None:
    """Check a tensor like a valid call's output, as its gradient: conditions 1, 2 and 4.

    Raises:
        ArgumentError: a condition does not hold.
    """
    _main(name, grad, q.device, q.dtype, traced)
    output = [*_sizes(q, traced)[:3], _sizes(v, traced)[3]]
    if list(_sizes(grad, traced)) != output:
        _refuse(f"{name} {output}", list(grad.shape))


def rows(q: Tensor, traced: bool = False, **given: Tensor) -> None:
    """Check numbers per row, ``[B, H, T]`` in float32, or float64 for float64.

    Raises:
        ArgumentError: a condition does not hold.
    """
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    for name, x in given.items():
        _dense(name, x, q.device, traced)
        if x.dtype is not dtype:
            _refuse(f"{name} in {dtype}", x.dtype)
        if list(_sizes(x, traced)) != list(_sizes(q, traced)[:3]):
            _refuse(f"{name} {list(q.shape[:3])}", list(x.shape))


def hydra(call: HydraCall, traced: bool = False) -> None:
    """Check a call of hydra.

    Raises:
        ArgumentError: a condition of a valid call does not hold.
    """
    device, keep, gain = call.q.device, call.keep, call.gain
    (b, heads, t, d), (_, groups, s, _), v_sizes = _inputs(call.q, call.k, call.v, device, traced)
    if groups != heads:
        _refuse(f"k with the {heads} heads of q (repeat grouped heads first)", groups)
    if v_sizes[3] != d:
        _refuse(f"v [{b}, {heads}, {s}, {d}] like k", list(call.v.shape))
    if call.causal and s != t:
        _refuse(f"as many keys as the {t} queries of a causal call", s)
    if keep is not None:
        _flags("keep", keep, device, traced)
        if keep.dim() != 4:
            _refuse(f"keep [{b}, 1, 1, {s}]", list(keep.shape))
        _broadcasts("keep", keep, (b, 1, 1, s), traced)
    if gain is not None:
        _floating("gain", gain, device, traced)
        if list(_sizes(gain, traced)) != [1, heads, 1, d]:
            _refuse(f"gain [1, {heads}, 1, {d}]", list(gain.shape))
    _number("eps", call.eps, _LEAST)
