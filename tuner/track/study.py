"""A run as an Optuna study: a copy for optuna-dashboard and Optuna's own tools, never searched on.

One trial per judged plan: its forms as categorical parameters, what was measured as user
attributes, the bound on the drop minus the allowed drop as the constraint ``drop``, and the
estimated milliseconds as the value. Optuna changes no trial that has ended, so a trial runs
until the run is done with its plan: until then a finalist may get its measured latency.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial
from sqlalchemy import URL

from attnpass.tuner.search import Inspection, PlanRow, RunResult
from attnpass.tuner.track.table import flat

LOCKED = 5.0
"""Seconds that a locked SQLite file is waited for."""


class StudyCopy:
    """The study of one run in an Optuna storage; the same run finds it again.

    Its name is the run's id and a digest of the search space: Optuna refuses other choices under
    the same name. With ``refresh`` a stored study is replaced.

    Args:
        storage: a URL as SQLAlchemy takes it, or the path of an SQLite file.
    """

    name = "--storage"

    def __init__(self, inspection: Inspection, storage: str) -> None:
        self.run, self.limit = inspection.run, inspection.settings.max_drop
        space = {site: ("softmax", *choices) for site, choices in inspection.legal.items()}
        text = json.dumps(list(space.items()))
        name = f"{self.run}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        self.space = {site: CategoricalDistribution(choices) for site, choices in space.items()}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.stored = opened(storage)
        if inspection.settings.refresh and name in optuna.get_all_study_names(self.stored):
            optuna.delete_study(study_name=name, storage=self.stored)
        study = optuna.create_study(study_name=name, storage=self.stored, load_if_exists=True)
        study.set_user_attr("task", inspection.settings.task)
        study.set_user_attr("max_drop", self.limit)
        self.study = self.stored.get_study_id_from_name(name)
        trials = [t for t in study.get_trials(deepcopy=False) if "plan" in t.user_attrs]
        self.ended = {t.user_attrs["plan"] for t in trials if t.state.is_finished()}
        self.running = {
            t.user_attrs["plan"]: self.stored.get_trial_id_from_study_id_trial_number(
                self.study, t.number
            )
            for t in trials
            if not t.state.is_finished()
        }
        self.costs: dict[str, float] = {}

    def judged(self, row: PlanRow) -> None:
        """A trial that runs, or what is new of the one there is."""
        if row.plan in self.ended:
            return
        self.costs[row.plan] = row.estimate_ms
        if row.plan in self.running:
            for key, value in self._attributes(row).items():
                self.stored.set_trial_user_attr(self.running[row.plan], key, value)
            return
        trial = create_trial(
            state=TrialState.RUNNING,
            params={site: row.forms.get(site, "softmax") for site in self.space},
            distributions=dict(self.space),
            user_attrs=self._attributes(row),
            constraints={"drop": self._excess(row)},
        )
        self.running[row.plan] = self.stored.create_new_trial(self.study, trial)

    def finished(self, result: RunResult, files: Mapping[str, str]) -> None:
        """All trials end where the run is done; where it was interrupted they wait for it."""
        facts: dict[str, Any] = {"status": result.status, "best": result.best, **files}
        facts |= {"baseline_ms": result.facts.baseline_ms, "ceiling": result.facts.ceiling}
        for key, value in facts.items():
            self.stored.set_study_user_attr(self.study, key, value)
        if result.status == "done":
            for plan, cost in self.costs.items():
                self.stored.set_trial_state_values(
                    self.running.pop(plan), TrialState.COMPLETE, [cost]
                )
                self.ended.add(plan)

    def _attributes(self, row: PlanRow) -> dict[str, Any]:
        """What is shown of a trial."""
        converted = {site: form for site, form in row.forms.items() if form != "softmax"}
        shown = {**flat(row, self.limit), "run": self.run, "constraint": self._excess(row)}
        return {**shown, "forms": ", ".join(f"{s}: {f}" for s, f in converted.items())}

    def _excess(self, row: PlanRow) -> float:
        """The bound on the selection minus the allowed drop, feasible at 0 or below."""
        return 1.0 if row.selection is None else row.selection.upper - self.limit


def opened(storage: str) -> RDBStorage:
    """The storage of a URL, or of the path of an SQLite file."""
    if "://" not in storage:
        path = Path(storage).absolute()
        storage = URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)
    patient = {"connect_args": {"timeout": LOCKED}} if storage.startswith("sqlite") else {}
    return RDBStorage(storage, engine_kwargs=patient)
