"""The options of ``torch.compile(model, backend="attnpass", options=...)``, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from attnpass import forms
from attnpass.errors import OptionError
from attnpass.plan import Plan
from attnpass.site import ALLOW
from attnpass.text import listed
from attnpass.torch_internals import inductor_modes

INNER = ("inductor", "aot_eager", "eager")


@dataclass(frozen=True)
class Options:
    """What a user may set.

    Attributes:
        form: one form for every legal site; ``none`` leaves every graph as it is. Without a form
            and a plan, exact softmax runs by the quicker implementation.
        form_options: the form's options (h, alpha, L, r, kernel).
        plan: a ``Plan`` or the path of a plan file.
        sites: globs on site names to which ``form`` applies.
        allow: ``other_weights``, ``drop_dropout``.
        inner: ``inductor``, ``aot_eager``, ``eager`` or a backend callable.
        mode: inductor's mode (``torch.compile`` refuses ``mode=`` beside ``options=``).
        db: the SQLite file with pinned plans.
        strict: raise instead of falling back; a graph that cannot be normalised runs unchanged.
        inductor: config patches handed to inductor.
    """

    form: str | None = None
    form_options: Mapping[str, Any] = field(default_factory=dict)
    plan: Plan | None = None
    sites: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    inner: str | Callable[..., Any] = "inductor"
    mode: str | None = None
    db: str | None = None
    strict: bool = False
    inductor: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, options: Mapping[str, Any] | None, mode: str | None = None) -> Options:
        """Options from what the user gave.

        Raises:
            OptionError: an unknown key or a value out of range; the message lists what is known.
            PlanError: the plan file cannot be read.
        """
        given = dict(options or {})
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise OptionError(f"expected options of {', '.join(known)}, got {', '.join(unknown)}")
        if given.get("form") is not None and given.get("plan") is not None:
            raise OptionError("expected either 'form' or 'plan' in options, got both")
        form, more = given.get("form"), given.get("form_options") or {}
        if not isinstance(more, Mapping):
            raise OptionError(f"expected 'form_options' to be a dict, got {more!r}")
        if form == "none":
            wrong = [key for key in ("form_options", "sites") if given.get(key)]
            if wrong:
                raise OptionError(f"expected form 'none' alone, got {listed(wrong)} beside it")
        elif form is not None:
            forms.check_options(form, dict(more))
        elif given.get("form_options") or given.get("sites"):
            raise OptionError("expected 'form' beside 'form_options' or 'sites', got none")
        plan = given.get("plan")
        if isinstance(plan, (str, Path)):
            given["plan"] = Plan.load(plan).frozen()
        elif plan is not None and not isinstance(plan, Plan):
            raise OptionError(f"expected 'plan' to be a Plan or a path, got {type(plan).__name__}")
        for key in ("sites", "allow"):
            value = given.get(key) or ()
            if not isinstance(value, (str, list, tuple, set)):
                raise OptionError(f"expected '{key}' to be names, got {value!r}")
            given[key] = (value,) if isinstance(value, str) else tuple(value)
        wrong = sorted(set(given["allow"]) - set(ALLOW))
        if wrong:
            raise OptionError(f"expected 'allow' of {', '.join(ALLOW)}, got {', '.join(wrong)}")
        inner = given.get("inner", "inductor")
        if not callable(inner) and inner not in INNER:
            raise OptionError(
                f"expected 'inner' of {', '.join(INNER)} or a callable, got {inner!r}"
            )
        given["mode"] = _mode(given.get("mode"), mode)
        return cls(**given)


def _mode(option: str | None, argument: str | None) -> str | None:
    """The one mode given, None for default.

    Raises:
        OptionError: an unknown mode.
    """
    mode = option or argument
    known = ("default", *inductor_modes())
    if mode is not None and mode not in known:
        raise OptionError(f"expected 'mode' of {', '.join(dict.fromkeys(known))}, got {mode!r}")
    return None if mode == "default" else mode
