"""optuna-dashboard, started as users start it, shows the plans of a study with what is known."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from rows_of_plans import ROWS, inspected, result_of

from attnpass.tuner.track.study import StudyCopy


@contextmanager
def dashboard(file: Path) -> Iterator[str]:
    """The address of optuna-dashboard over a file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = Path(sys.executable).with_name("optuna-dashboard")
    server = subprocess.Popen(
        [command, f"sqlite:///{file}", "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while server.poll() is None and time.monotonic() < deadline:
            with suppress(OSError):
                fetched(f"{address}/api/studies")
                break
            time.sleep(0.1)
        yield address
    finally:
        server.kill()
        server.wait()


def fetched(address: str) -> str:
    with urllib.request.urlopen(address, timeout=60) as answer:
        return answer.read().decode()


def test_the_study_lists_plans_with_forms_numbers_and_constraint(tmp_path):
    copy = StudyCopy(inspected(), str(tmp_path / "study.db"))
    for row in ROWS:
        copy.judged(row)
    copy.finished(result_of(ROWS), {"plan": "plan.json"})
    with dashboard(tmp_path / "study.db") as address:
        (summary,) = json.loads(fetched(f"{address}/api/studies"))["study_summaries"]
        study = json.loads(fetched(f"{address}/api/studies/{summary['study_id']}?after=0"))
        page = fetched(f"{address}/dashboard/studies/{summary['study_id']}/trials")
    assert summary["study_name"].startswith("r1-") and "<html" in page
    assert len(study["trials"]) == len(ROWS)
    for trial, row in zip(study["trials"], ROWS, strict=True):
        shown = {a["key"]: a["value"] for a in trial["user_attrs"]}
        assert row.plan in shown["plan"] and "two: relu" in shown["forms"]
        assert {p["name"]: p["param_external_value"] for p in trial["params"]} == row.forms
        assert float(shown["constraint"]) == pytest.approx(row.selection.upper - 0.02)
        assert {"selection_drop", "selection_upper", "estimate_ms", "run", "state"} <= set(shown)
    assert float(shown["measured_ms"]) == ROWS[1].latency.ms
