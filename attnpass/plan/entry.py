"""One site's entry in a plan: its form, the form's options, and the site's recorded shape.

``assign`` makes the entries of a model's sites from one form and globs on the sites' names.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from attnpass import forms
from attnpass.errors import OptionError, PlanError
from attnpass.site import AttentionSite, Decline
from attnpass.text import listed, shown

log = logging.getLogger("attnpass")


@dataclass
class Entry:
    """The plan for one site.

    Attributes:
        form: the name of the form that runs at the site.
        options: the form's options.
        fits: ``AttentionSite.fits()`` of the site; empty accepts any site of that name.
        weights: digest of the site's projection weights; empty where unknown.
    """

    form: str
    options: dict[str, Any] = field(default_factory=dict)
    fits: dict[str, Any] = field(default_factory=dict)
    weights: str = ""

    @property
    def changes(self) -> bool:
        """Whether the plan changes the site: another form, or trained projections."""
        return self.form != "softmax" or bool(self.options.get("learns"))

    @property
    def needs_values(self) -> bool:
        """Whether the form has parameters and a model's site had them when it was saved.

        An entry written by hand has no digest of weights; its form starts where it is made.
        """
        if not self.weights or self.form == "softmax":
            return False
        # a hidden width that rounds to 0 has no parameters
        return self.form != "skipat" or self.options.get("r", 0) > 0.1

    def check(self, site: AttentionSite) -> None:
        """Refuse a site of another shape than the recorded one, or where the form is illegal.

        Raises:
            PlanError: the first field of ``fits`` that differs, or the site's Decline.
        """
        found = site.fits()
        if self.fits and self.fits != found:
            keys = {**found, **self.fits}
            differs = next(key for key in keys if self.fits.get(key) != found.get(key))
            raise PlanError(
                f"expected the plan's site {site.name} with {differs} "
                f"{shown(self.fits.get(differs))}, got {found.get(differs)}: another model"
            )
        decline = site.legal.get(self.form)
        if decline is not None:
            raise PlanError(f"expected a legal form at {site.name}, got {self.form} ({decline})")

    def as_dict(self) -> dict[str, Any]:
        """The entry as plain JSON types."""
        out: dict[str, Any] = {"form": self.form}
        if self.options:
            out["options"] = self.options
        return out | {"fits": self.fits, "weights": self.weights}


def assign(
    sites: Iterable[AttentionSite],
    form: str,
    options: Mapping[str, Any] | None = None,
    globs: Sequence[str] | str | None = None,
    *,
    strict: bool = False,
) -> tuple[dict[str, Entry], list[Decline]]:
    """An entry per site: ``form`` where a glob selects it and it is legal, else softmax.

    Returns the entries and the Declines of the selected sites that stay softmax.

    Raises:
        OptionError: unknown form or option, or a glob that matches no site.
        PlanError: with ``strict``, an illegal site named exactly.
    """
    sites, form_options = list(sites), dict(options or {})
    forms.check_options(form, form_options)
    patterns = [globs] if isinstance(globs, str) else list(globs or ["*"])
    _check_globs(patterns, [site.name for site in sites])
    entries, declines = {}, []
    for site in sites:
        selected = any(fnmatch.fnmatchcase(site.name, pattern) for pattern in patterns)
        decline = site.legal.get(form) if selected else None
        if decline is not None:
            declines.append(decline)
            if site.name in patterns:
                text = f"expected a legal form at {site.name}, got {form} ({decline})"
                warn_or_raise(PlanError(f"{text}; it stays softmax"), strict)
        runs = form if selected and decline is None else "softmax"
        entries[site.name] = Entry(runs, form_options if runs == form else {}, site.fits())
    return entries, declines


def _check_globs(patterns: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a glob that matches none of the sites, where there are sites."""
    for pattern in patterns:
        if names and not fnmatch.filter(names, pattern):
            raise OptionError(
                f"expected a glob that matches a site, got {pattern!r};"
                f" sites are {listed(list(names), 20)}"
            )


def warn_or_raise(error: PlanError, strict: bool) -> None:
    """Log ``error`` as a warning.

    Raises:
        PlanError: ``error`` itself, with ``strict``.
    """
    if strict:
        raise error
    log.warning("%s", error)
