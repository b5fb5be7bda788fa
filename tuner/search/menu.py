"""The menu of a run: the choices that a site may take, each a form with its options, by name.

A name is a form, or one of the functions h of the pointwise family, and options that differ from
the form's defaults: ``sigmoid``, ``gelu``, ``relu alpha=0.5``, ``skipat r=1 kernel=5``. With
``softmax`` alone nothing is converted: the answer is the lossless plan or none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from attnpass.errors import OptionError
from attnpass.forms import check_options
from attnpass.kernels.activations import RELU_FAMILY
from attnpass.site import FORMS

NAMED: Mapping[str, tuple[str, dict[str, Any]]] = {
    "skipat r=0.5": ("skipat", {"r": 0.5, "kernel": 3}),
    **{h: ("relu", {"h": h}) for h in RELU_FAMILY if h != "relu"},
}
"""Names that stand for more than they say."""

USUAL = ("sigmoid", "relu", "hydra", "skipat r=0", "skipat r=0.5")
"""The choices that a quick run considers where none are named."""

POINTWISE = ("sigmoid", "relu", *(h for h in RELU_FAMILY if h != "relu"))
"""The seven functions of the pointwise family (2309.08586), each as it is published."""

FULL = (
    *POINTWISE,
    "relu alpha=0.5",
    "sigmoid L=keys",
    "relu L=keys",
    "hydra",
    "skipat r=0",
    "skipat r=0.5",
    "skipat r=1 kernel=3",
    "skipat r=1 kernel=5",
    "skipat r=2 kernel=5",
)
"""The choices that a full run considers where none are named."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "usual": USUAL,
    "all": FULL,
    "pointwise": POINTWISE,
    "skipat": tuple(c for c in FULL if c.startswith("skipat")),
}
"""Words that stand for several choices."""


def form_of(choice: str) -> tuple[str, dict[str, Any]]:
    """The form and the options of a choice; ``softmax`` is one too.

    Raises:
        OptionError: no form, an unknown option, or a value that it may not have.
    """
    name = " ".join(choice.split())
    if name in NAMED:
        form, options = NAMED[name]
        return form, dict(options)
    first, *rest = name.split(" ")
    form, options = NAMED.get(first, (first, {}))
    if form not in FORMS:
        known = ", ".join(dict.fromkeys((*GROUPS, *FULL)))
        raise OptionError(f"expected forms of {known}, got {choice}")
    options = dict(options)
    for word in rest:
        key, equals, value = word.partition("=")
        if not equals:
            raise OptionError(f"expected options like r=0.5 in {choice!r}, got {word!r}")
        options[key] = _value(value)
    check_options(form, options)
    return form, options


def _value(text: str) -> Any:
    """A number where it is one, else the word."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def menu(names: Sequence[str]) -> tuple[str, ...]:
    """The choices of names and groups, each form with its options once, in order.

    Raises:
        OptionError: a name that is none, or no name at all.
    """
    if not names:
        raise OptionError(f"expected forms of {', '.join((*GROUPS, *FULL))}, got none")
    found: dict[str, str] = {}
    for name in names:
        for choice in GROUPS.get(name, (" ".join(name.split()),)):
            found.setdefault(json.dumps(form_of(choice), sort_keys=True), choice)
    return tuple(found.values())
