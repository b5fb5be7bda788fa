"""The options of the forms and the values that each may have: checked before anything is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from attnpass.errors import OptionError
from attnpass.kernels.activations import RELU_FAMILY
from attnpass.site import FORMS
from attnpass.text import shown

OPTIONS: dict[str, dict[str, Any]] = {
    "softmax": {"learns": False},
    "sigmoid": {"L": None, "approximate": "none"},
    "relu": {"h": "relu", "alpha": 1.0, "L": None},
    "hydra": {},
    "skipat": {"r": 0.0, "kernel": 5},
}
"""The options of each form, with their defaults.

``L``: the length of ``Pointwise``; None lets the site's mask decide. ``learns``: whether the
projections of a softmax site may have weight deltas.
"""

LENGTHS = ("keys", "visible")
"""The names of a length L that is counted: all keys, or the keys that a row may attend to."""


@dataclass(frozen=True)
class Values:
    """The values that an option may have.

    Attributes:
        told: what they are, for the message. fit: whether a value is one of them.
    """

    told: str
    fit: Callable[[Any], bool]


def _plain(x: object, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(x, kinds) and not isinstance(x, bool)


def _number(low: float, high: float) -> Callable[[Any], bool]:
    """Whether a value is a number from ``low`` to ``high``; compared exactly, never converted."""
    return lambda x: _plain(x, (int, float)) and low <= x <= high


def _words(*words: str | None) -> Values:
    told = ", ".join("null" if word is None else word for word in words)
    return Values(f"in {told}", lambda x: (x is None or isinstance(x, str)) and x in words)


_length = _number(1e-3, 1e9)
VALUES: dict[str, Values] = {
    # beyond the bounds a layer takes gigabytes (r, kernel), or float32 overflows (L, alpha)
    "r": Values("from 0 to 8", _number(0, 8)),
    "kernel": Values("odd, from 1 to 31", lambda x: _plain(x, int) and x in range(1, 32, 2)),
    "L": Values(
        "'keys', 'visible' or a number from 0.001 to 1e9",
        lambda x: (isinstance(x, str) and x in LENGTHS) or _length(x),
    ),
    "alpha": Values("a number from -4 to 4", _number(-4, 4)),
    "approximate": _words("none", "tanh"),
    "h": _words(*RELU_FAMILY),
    "learns": Values("true or false", lambda x: isinstance(x, bool)),
}
"""The values of each option, for every form that has it."""


def check_value(name: str, value: object) -> None:
    """Check one option.

    Raises:
        OptionError: a value that the option may not have.
    """
    if not VALUES[name].fit(value):
        raise OptionError(f"expected {name} {VALUES[name].told}, got {shown(value)}")


def check_options(form: str, options: Mapping[str, Any]) -> None:
    """Check names and values, as ``build`` does, without a site.

    Raises:
        OptionError: an unknown form or option, or a value that it may not have.
    """
    if form not in FORMS:
        raise OptionError(f"expected a form of {', '.join(FORMS)}, got {shown(form)}")
    unknown = sorted(set(options) - set(OPTIONS[form]))
    if unknown:
        takes = ", ".join(OPTIONS[form]) or "no options"
        raise OptionError(f"expected options of form {form} ({takes}), got {', '.join(unknown)}")
    for name, value in options.items():
        # where the default is None, None stands for it
        if not (value is None and OPTIONS[form][name] is None):
            check_value(name, value)
