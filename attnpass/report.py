"""Reports: the attention sites of a model or of the compiled graphs, and every refusal."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from attnpass.site import FORMS, AttentionSite, Decline

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


@dataclass
class Report:
    """The verdicts on a model, or on all graphs compiled so far.

    Attributes:
        sites: every attention found.
        declined: everything that resembles attention and is none, or was not rewritten.
        rewritten: site name to the form that runs there.
        plan: hash of the plan that ran, ``""`` for none.
        graphs: number of graphs seen.
        misread: sites that inductor's own attention matcher would have compiled to another
            function; the matcher was switched off for those graphs.
    """

    sites: list[AttentionSite] = field(default_factory=list)
    declined: list[Decline] = field(default_factory=list)
    rewritten: dict[str, str] = field(default_factory=dict)
    plan: str = ""
    graphs: int = 0
    misread: list[Decline] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """One line: how many sites were found, rewritten and declined."""
        return (
            f"{len(self.sites)} attention sites found, {len(self.rewritten)} rewritten, "
            f"{len(self.declined)} declined"
        )

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        return {
            "sites": [s.as_dict() for s in self.sites],
            "declined": [d.as_dict() for d in self.declined],
            "rewritten": dict(self.rewritten),
            "plan": self.plan,
            "graphs": self.graphs,
            "misread": [d.as_dict() for d in self.misread],
        }

    def merge(self, other: Report) -> None:
        """Add the verdicts of another graph; a site seen again counts once."""
        known = {s.name for s in self.sites}
        self.sites += [s for s in other.sites if s.name not in known]
        self.declined += [d for d in other.declined if d not in self.declined]
        self.misread += [d for d in other.misread if d not in self.misread]
        self.rewritten |= other.rewritten
        self.plan = other.plan or self.plan
        self.graphs += other.graphs

    def table(self) -> Table:
        """The sites as a ``rich`` table: per form legal, or the code that says why not."""
        from rich.table import Table

        table = Table(title=self.summary, title_justify="left")
        for column in ("site", "kind", "known", "heads", "T x S", "mask", *FORMS):
            table.add_column(column, no_wrap=column == "site")
        for site in self.sites:
            table.add_row(*self._row(site))
        return table

    def _row(self, site: AttentionSite) -> list[str | Text]:
        """The cells of one site."""
        from rich.text import Text

        heads = f"{site.heads}" if site.heads == site.kv_heads else f"{site.heads}/{site.kv_heads}"
        mask = ",".join(sorted(site.mask)) + ("+bias" if site.bias else "") or "none"
        mask = "unknown" if site.degree == "logits" else mask
        marks: list[str | Text] = []
        for form in FORMS:
            decline = site.legal.get(form)
            legal = Text("yes") if decline is None else Text(decline.code, "dim")
            runs = self.rewritten.get(site.name) == form
            marks.append(Text("runs", "green") if runs else legal)
        lengths = f"{site.query_len}x{site.key_len}"
        about = [site.name, site.kind, site.degree, f"{heads}x{site.head_dim}", lengths, mask]
        return [*about, *marks]

    def __str__(self) -> str:
        from attnpass.console import PlainConsole

        out = io.StringIO()
        console = PlainConsole(file=out, width=160)
        console.print(self.table())
        # why of an attention its softmax alone is known
        partly = [d for s in self.sites if s.degree == "logits" and (d := s.legal.get("hydra"))]
        verdicts = {"logits only": partly, "declined": self.declined, "misread": self.misread}
        for verdict, declines in verdicts.items():
            for d in declines:
                console.print(
                    f"{verdict} {d.path}: {d} ({', '.join(filter(None, (d.source, d.node)))})"
                )
        return out.getvalue()


_lock = threading.Lock()

_total = Report()


def record(report: Report) -> None:
    """Add one compiled graph to the process' report."""
    with _lock:
        _total.merge(report)


def compiled_report() -> Report:
    """The report of all graphs that ``torch.compile(backend="attnpass")`` compiled so far."""
    with _lock:
        out = Report()
        out.merge(_total)
        return out


def reset_report() -> None:
    """Forget the graphs compiled so far."""
    global _total
    with _lock:
        _total = Report()
