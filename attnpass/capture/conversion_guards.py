"""What a converted module's graph took for granted, and the check of every call against it.

Dynamo reads Python: what a model asks of its arguments, of its parameters and of torch's global
state is answered once, and the answer is part of the graph. A call is covered where every answer
would be the same.

Soundness (a call that passes the check runs the graph that capturing it would have made).
Conditions:

1. Leaves of the arguments that are no tensors have the type and value given to ``convert``.
2. Tensors among them have the type, dtype, device and layout given to ``convert``.
3. Their sizes and strides fulfil the conditions under which Dynamo captured the graph. Every axis
   above 1 was symbolic then; what the model, its plan or a branch made of it is a condition. From
   which size on torch takes another kernel for a convolution is none, where all kernels give
   results of one memory format (``any_convolution``): the operator chooses anew at every call.
4. Tensors that were different are different, and those that were one are one.
5. Gradients: ``torch.is_grad_enabled`` and ``requires_grad`` of the arguments are a combination
   under which Dynamo makes the same graph; other combinations are not covered. (A model that asks
   for inference mode does not capture.)
6. Autocast, default dtype, default device and deterministic algorithms are as they were.
7. Parameters and buffers have the shape, dtype and device that they had. They need gradients as
   they did, or none does and the same graph comes out so.
8. The module is in the mode, training or evaluation, that the model was in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnpass.errors import CaptureError
from attnpass.torch_internals import FakeTensor

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
"""Types of leaves that are compared by value: nothing in them can change or hide a tensor."""

Needs = tuple[bool, ...]
"""``requires_grad`` of several tensors."""


class SizeConditions:
    """Conditions on sizes and strides, as Python over the leaves ``x`` of the arguments.

    It is pickled as its text: the function compiled from it cannot be.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = tuple(texts)
        self.hold = _compiled(" and ".join(texts) or "True")
        self._each = [_compiled(text) for text in texts]

    def __reduce__(self) -> Any:
        return SizeConditions, (self.texts,)

    def broken(self, leaves: list[Any]) -> str:
        """The first condition that does not hold."""
        rows = zip(self.texts, self._each, strict=True)
        return next(text for text, holds in rows if not holds(leaves))


def _compiled(text: str) -> Callable[[list[Any]], bool]:
    found: Callable[[list[Any]], bool] = eval(f"lambda x: {text}", {"math": math, "torch": torch})

    def holds(x: list[Any]) -> bool:
        try:
            return found(x)
        except ZeroDivisionError:  # a remainder by a size that is 0 here
            return False

    return holds


def is_plain(x: Any) -> bool:
    """Whether a leaf of the arguments is compared by value."""
    return type(x) in PLAIN


def ambient() -> tuple[Any, ...]:
    """The global state that a capture answers for: autocast's, and torch's defaults."""
    return (
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
        torch.get_default_dtype(),
        # Dynamo cannot read the default device, and compiles anew where it changes
        torch.compiler.is_compiling() or torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
    )


AMBIENT = (
    "autocast on the CPU",
    "autocast on the GPU",
    "default dtype",
    "default device",
    "deterministic algorithms",
)


def _same_ambient(known: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    device = AMBIENT.index("default device")
    if torch.compiler.is_compiling():
        return known[:device] + known[device + 1 :] == now[:device] + now[device + 1 :]
    return known == now


def twins(leaves: list[Any]) -> list[int]:
    """For every leaf the first position of the same tensor."""
    ids = [id(x) if isinstance(x, Tensor) else -i for i, x in enumerate(leaves)]
    return [ids.index(i) for i in ids]


def needs(tensors: Sequence[Any]) -> Needs:
    """``requires_grad`` of the tensors among ``tensors``."""
    return tuple(x.requires_grad for x in tensors if isinstance(x, Tensor))


def _kind(x: Tensor) -> tuple[Any, ...]:
    return x.dtype, x.device, x.layout


def _state(x: Tensor) -> tuple[Any, ...]:
    return x.shape, x.dtype, x.device


def _one_type(x: Tensor, known: type) -> bool:
    """Whether a tensor has a type; a compiler that traces a call puts types of its own there."""
    return type(x) is known or torch.compiler.is_compiling() or isinstance(x, FakeTensor)


@dataclass(frozen=True)
class Gradients:
    """The ways of taking gradients under which the graph is the same.

    Attributes:
        calls: ``torch.is_grad_enabled()`` and what ``needs`` says of the arguments.
        state: what ``needs`` says of parameters and buffers.
    """

    calls: tuple[tuple[bool, Needs], ...]
    state: tuple[Needs, ...]


class Guards:
    """The facts of a conversion.

    Args:
        leaves: of the arguments at conversion. names: of these, for messages. state: the
            parameters and buffers that the graph reads, by path. training: the model's mode.
        sizes, gradients: under which the graph was captured.
    """

    def __init__(
        self,
        leaves: list[Any],
        names: Sequence[str],
        state: dict[str, Tensor],
        training: bool,
        sizes: SizeConditions,
        gradients: Gradients,
    ) -> None:
        self.names, self.sizes, self.gradients = tuple(names), sizes, gradients
        self.also: list[tuple[SizeConditions, Gradients]] = []
        self.plain = [None if isinstance(x, Tensor) else (x,) for x in leaves]
        self.types = [type(x) for x in leaves]
        self.kinds = [_kind(x) if isinstance(x, Tensor) else None for x in leaves]
        self.twins, self.ambient, self.training = twins(leaves), ambient(), training
        self.paths = tuple(state)
        self.state = [_state(x) for x in state.values()]

    def add(self, other: Guards) -> None:
        """Take sizes and gradients of another capture too, whose graph was proven to be this."""
        self.also.append((other.sizes, other.gradients))

    def check(self, leaves: list[Any], state: list[Tensor], training: bool) -> None:
        """Raise CaptureError for a call that the conversion does not cover."""
        self._check_values(leaves)
        if twins(leaves) != self.twins:
            raise CaptureError(
                "expected the same arguments to be one tensor as given to convert, got others;"
                " convert with different tensors"
            )
        rows = ((self.sizes, self.gradients), *self.also)
        gradients = next((own for sizes, own in rows if sizes.hold(leaves)), None)
        if gradients is None:
            self._raise_sizes(leaves)
        elif (torch.is_grad_enabled(), needs(leaves)) not in gradients.calls:
            self._raise_gradients(leaves)
        if not _same_ambient(self.ambient, ambient()):
            self._raise_ambient()
        self._check_state(state, self.gradients if gradients is None else gradients)
        if training != self.training:
            raise CaptureError(
                f"expected the module in {_mode(self.training)} mode as the model was at"
                f" conversion, got {_mode(training)} mode; convert the model in that mode"
            )

    def _check_values(self, leaves: list[Any]) -> None:
        """Types and values of what is no tensor, types and kinds of tensors."""
        for i, x in enumerate(leaves):
            known, kind = self.plain[i], self.kinds[i]
            if isinstance(x, Tensor) and known is None:
                if _kind(x) != kind or not _one_type(x, self.types[i]):
                    raise _other(self.names[i], (self.types[i], kind), (type(x), _kind(x)))
            elif known is None:
                raise _other(self.names[i], "a tensor", x)
            elif not _equal(known[0], x):
                raise _other(self.names[i], known[0], x)

    def _check_state(self, state: list[Tensor], gradients: Gradients) -> None:
        """Shapes, dtypes, devices and gradients of parameters and buffers."""
        found = [_state(x) for x in state]
        if found != self.state:
            i = next(i for i, x in enumerate(found) if x != self.state[i])
            raise CaptureError(
                f"expected {self.paths[i]} of {self.state[i]} as at conversion, got {found[i]};"
                " change the model first, then convert it"
            )
        if needs(state) not in gradients.state:
            raise CaptureError(
                "expected the parameters to need gradients as at conversion, got others that"
                " do; convert again after freezing or unfreezing"
            )

    def _raise_sizes(self, leaves: list[Any]) -> None:
        broken = self.sizes.broken(leaves)
        for i, name in enumerate(self.names):
            broken = broken.replace(f"x[{i}]", name)
        got = [(tuple(x.shape), x.stride()) for x in leaves if isinstance(x, Tensor)]
        raise CaptureError(
            f"expected arguments with {broken} as the graph was captured for, got (sizes, strides)"
            f" {got}; convert with arguments of such sizes and strides"
        )

    def _raise_gradients(self, leaves: list[Any]) -> None:
        raise CaptureError(
            "expected gradients to be taken in a way that gives the graph of the conversion:"
            f" one of {self.gradients.calls}, got {(torch.is_grad_enabled(), needs(leaves))};"
            " convert in that mode, with arguments that need gradients where these do"
        )

    def _raise_ambient(self) -> None:
        rows = zip(AMBIENT, self.ambient, ambient(), strict=True)
        name, known, got = next(row for row in rows if row[1] != row[2])
        raise CaptureError(
            f"expected {name} to be {known} as at conversion, got {got}; convert under that"
        )


def _mode(training: bool) -> str:
    return "training" if training else "evaluation"


def _other(name: str, known: Any, got: Any) -> CaptureError:
    shown = f"a tensor of {_kind(got)}" if isinstance(got, Tensor) else repr(got)
    return CaptureError(
        f"expected {name} to be {known!r} as given to convert, got {shown};"
        " convert again for others"
    )


def _equal(known: Any, x: Any) -> bool:
    """Whether two plain values are one: ``True`` is not 1, and 0.0 is not -0.0."""
    if type(x) is not type(known) or x != known:
        return False
    return bool(known != 0.0 or not isinstance(x, float) or math.copysign(1, x) == _sign(known))


def _sign(x: float) -> float:
    return math.copysign(1, x)
