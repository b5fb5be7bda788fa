"""A run as an MLflow run: settings, metrics, one step per judged plan, and the files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from attnpass.tuner.search import Inspection, PlanRow, RunResult
from attnpass.tuner.track.table import flat

EXPERIMENT = "attnpass"
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""How long a server that does not answer is waited for, where the environment does not say."""
FOLDER = {"MLFLOW_ALLOW_FILE_STORE": "true"}
"""MLflow refuses folders that nobody asked for; this one was asked for."""
STEPS = ("estimate_ms", "selection_drop", "selection_upper", "divergence")
"""Metrics of each judged plan."""
TAG = "attnpass.run"


class MlflowRun:
    """The MLflow run of one run, in the experiment ``attnpass``; the same run finds it again.

    Args:
        uri: of the tracking server, or of a folder or database as MLflow takes it.
    """

    name = "--mlflow"

    def __init__(self, inspection: Inspection, uri: str) -> None:
        folder = "://" not in uri or uri.startswith("file:")
        for key, value in {**PATIENCE, **(FOLDER if folder else {})}.items():
            os.environ.setdefault(key, value)
        self.limit, self.told = inspection.settings.max_drop, dict[str, int]()
        self.client = MlflowClient(tracking_uri=uri)
        found = self.client.get_experiment_by_name(EXPERIMENT)
        within = found.experiment_id if found else self.client.create_experiment(EXPERIMENT)
        asked = f"tags.`{TAG}` = '{inspection.run}'"
        runs = self.client.search_runs([within], asked)
        if runs:
            self.run = runs[0].info.run_id
            self.client.update_run(self.run, status="RUNNING")
        else:
            made = self.client.create_run(within, run_name=inspection.run)
            self.run = made.info.run_id
        params = {**inspection.asked, "sites": len(inspection.sites)}
        self.client.log_batch(
            self.run,
            params=[Param(k, str(v)) for k, v in params.items()],
            tags=[RunTag(TAG, inspection.run), RunTag("attnpass.task", inspection.settings.task)],
        )

    def judged(self, row: PlanRow) -> None:
        """The numbers of a plan, at a step of its own."""
        if row.plan in self.told:
            return
        step = self.told[row.plan] = len(self.told)
        numbers = flat(row, self.limit)
        self._log({name: numbers[name] for name in STEPS if name in numbers}, step)

    def finished(self, result: RunResult, files: Mapping[str, str]) -> None:
        """The metrics of the run and of its best plan, the files, and the whole result."""
        facts, best = result.facts, result.best_row
        numbers = {
            "baseline_ms": facts.baseline_ms,
            "baseline_score": facts.baseline_score,
            "ceiling": facts.ceiling,
            "ceiling_skipat": facts.ceiling_skipat,
            "attention_share": facts.attention_share,
            "tried": result.tried,
        }
        if best is not None:
            own = flat(best, self.limit)
            numbers |= {f"best_{k}": v for k, v in own.items() if isinstance(v, (int, float))}
        self._log({k: v for k, v in numbers.items() if v is not None}, 0)
        text = json.dumps(result.as_dict(), default=str, indent=1)
        self.client.log_text(self.run, text, "result.json")
        for path in files.values():
            for part in (Path(path), Path(path).with_suffix(".safetensors")):
                if part.is_file():
                    self.client.log_artifact(self.run, str(part))
        self.client.set_terminated(self.run, "FINISHED" if result.status == "done" else "KILLED")

    def _log(self, numbers: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step) for name, value in numbers.items()]
        self.client.log_batch(self.run, metrics=metrics)
