"""A library of pieces: every (site, choice) is fitted once and reused by every plan with it.

A piece is a form's parameters with the changes to its site's weights. Pieces are calibrated from a
few batches and, where asked for, distilled (``distillation.py``), as the library of blocks in
Puzzle (2411.19146).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from attnpass.plan import Delta, Entry, Plan, assign
from attnpass.recover import fit_sites, observe
from attnpass.tuner.search.inspection import Inspection
from attnpass.tuner.search.menu import form_of
from attnpass.tuner.search.session import Session

Piece = tuple[dict[str, nn.Parameter], dict[str, Delta]]
"""A form's parameters by name, and the deltas that are added to the weights of its site."""


class PieceLibrary:
    """The pieces of one run by (site, choice), and the plans that are made of them."""

    def __init__(self, inspection: Inspection) -> None:
        self.inspection = inspection
        self.pieces: dict[tuple[str, str], Piece] = {}

    def calibrate(
        self,
        session: Session,
        choices: Sequence[str] = (),
        reserve: Callable[[], float] = lambda: 0.0,
    ) -> dict[str, dict[str, float]]:
        """Fit choices, where they are legal, to the original activations; the errors left of each.

        ``choices``: all by default, else those to fit, the most important first: where the budget
        has less left than the ``reserve``, all but the first are left out.

        Raises:
            KeyboardInterrupt: the run is to stop; the choices fitted so far stay calibrated.
        """
        capture, legal = self.inspection.capture, self.inspection.legal.values()
        every = [c for c in self.inspection.settings.forms if any(c in row for row in legal)]
        asked, errors = list(choices) or every, dict[str, dict[str, float]]()
        with session.progress.stage("calibrate", len(asked)) as step:
            observed = observe(capture, list(self.inspection.task.calibration))
            for i, choice in enumerate(asked):
                session.stop.check()
                if i and session.budget.left < reserve():
                    session.budget.leave_out(f"calibration: {', '.join(asked[i:])}")
                    break
                plan = self.everywhere(choice)
                errors[choice] = fit_sites(capture, plan, observed)
                self.keep(choice, plan)
                step(choice)
        return errors

    def everywhere(self, choice: str) -> Plan:
        """The plan that has one choice wherever it is legal, from the pieces there are."""
        sites = self.inspection.sites
        entries, _ = assign(sites, *form_of(choice))
        plan = Plan(entries).initialise(sites)
        for site in plan.sites:
            self._put(plan, site, choice)
        return plan

    def keep(self, choice: str, plan: Plan) -> None:
        """Take the pieces of one choice from the plan that has it everywhere."""
        for site, entry in plan.sites.items():
            if entry.form != "softmax":
                piece = (plan.values.get(site, {}), plan.deltas.get(site, {}))
                self.pieces[site, choice] = piece

    def plan(self, assignment: Mapping[str, str]) -> Plan:
        """The plan of choices per site, from the pieces; sites not named stay softmax."""
        entries = {}
        for name, entry in self.inspection.base.sites.items():
            form, options = form_of(assignment.get(name, "softmax"))
            entries[name] = Entry(form, options, entry.fits, entry.weights)
        plan = Plan(entries)
        for name, choice in assignment.items():
            self._put(plan, name, choice)
        return plan

    def _put(self, plan: Plan, site: str, choice: str) -> None:
        values, deltas = self.pieces.get((site, choice), ({}, {}))
        if values:
            plan.values[site] = values
        if deltas:
            plan.deltas[site] = deltas
