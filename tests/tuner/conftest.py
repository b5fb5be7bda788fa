"""Finished runs for all tests of the tuner; each is made once, and left as it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from tuning import DISTIL, QUIET, Replies, settings

from attnpass.store import Store
from attnpass.tuner.search import Inspection, RunResult, execute, inspect_task, timed
from attnpass.tuner.search.candidates import Candidates
from attnpass.tuner.search.distillation import Distillation
from attnpass.tuner.search.latencies import Latencies
from attnpass.tuner.search.run import stages
from attnpass.tuner.search.session import Session
from attnpass.tuner.search.summary import Findings


@dataclass(frozen=True)
class Finished:
    """A finished run, its database, and the records of its stages."""

    result: RunResult
    path: Path
    inspection: Inspection
    findings: Findings

    @property
    def candidates(self) -> Candidates:
        return self.findings.candidates

    def distillation(self, session: Session | None = None) -> Distillation:
        return Distillation(self.inspection, session or self.candidates.session, ())


def finish(path: Path, **more) -> Finished:
    with Store(path) as store:
        inspection = inspect_task(settings(**more), store)
        result = execute(inspection, store, QUIET)
        # all is stored: the stages only read
        session = Session(inspection.run, store, QUIET)
        *_, findings = stages(inspection, session, Latencies(inspection, session, Replies()))
    return Finished(result, path, inspection, findings)


@pytest.fixture(scope="session", autouse=True)
def any_noise():
    """However noisy the machine is: times are taken once, and what is stored is served."""
    with mock.patch.object(timed, "WIDE", math.inf):
        yield


@pytest.fixture
def little_noise(any_noise):
    """Noise counts, as it does for users."""
    with mock.patch.object(timed, "WIDE", 0.05):
        yield


def pytest_collection_modifyitems(items):
    """A finished run takes more than five seconds: whatever uses one is slow."""
    for item in items:
        if {"finished", "recovered"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run."""
    return finish(tmp_path_factory.mktemp("run") / "a.db")


@pytest.fixture(scope="session")
def recovered(tmp_path_factory):
    """A finished run that distilled."""
    return finish(tmp_path_factory.mktemp("bank") / "a.db", **DISTIL)
