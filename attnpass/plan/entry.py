"""Plan: which form runs at which site, with its parameters; JSON and safetensors on disk.

Loading never unpickles. A plan fits a site by name and structure; what does not fit stays softmax.
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

log = logging.getLogger("attnpass")


@dataclass
class Entry:
    """One site of a plan: its form, the form's options, and how to recognise the site."""

    form: str
    options: dict[str, Any] = field(default_factory=dict)
    fits: dict[str, Any] = field(default_factory=dict)
    weights: str = ""

    @property
    def changes(self) -> bool:
        """Whether the site becomes another: of another form, or with other projections."""
        return self.form != "softmax" or bool(self.options.get("learns"))

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
    sites, given = list(sites), dict(options or {})
    forms.check_options(form, given)
    patterns = [globs] if isinstance(globs, str) else list(globs or ["*"])
    for pattern in patterns:
        if sites and not fnmatch.filter([s.name for s in sites], pattern):
            raise OptionError(
                f"expected a glob that matches a site, got {pattern!r};"
                f" sites are {', '.join(s.name for s in sites)}"
            )
    entries, declines = {}, []
    for site in sites:
        chosen = any(fnmatch.fnmatchcase(site.name, p) for p in patterns)
        no = site.legal.get(form) if chosen else None
        if no is not None:
            declines.append(no)
            if site.name in patterns:
                _loud(
                    PlanError(
                        f"expected a legal form at {site.name}, got {form} ({no});"
                        " it stays softmax"
                    ),
                    strict,
                )
        runs = form if chosen and no is None else "softmax"
        entries[site.name] = Entry(runs, given if runs == form else {}, site.fits())
    return entries, declines


def _loud(error: PlanError, strict: bool) -> None:
    if strict:
        raise error
    log.warning("%s", error)
