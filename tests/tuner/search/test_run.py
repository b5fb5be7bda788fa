"""A tuning run end to end on a tiny task: resume, cache, interruptions."""

from __future__ import annotations

import itertools
import json

import pytest
from tuning import DISTIL, QUIET, TASKS, opened, rows, settings

from attnpass.errors import MeasureError
from attnpass.store import Store
from attnpass.tuner.measure import Worker
from attnpass.tuner.progress import ProgressPrinter
from attnpass.tuner.search import distillation, execute, inspect_task, reserve, run
from attnpass.tuner.search.budget import Budget
from attnpass.tuner.search.distillation import Distillation
from attnpass.tuner.search.pieces import PieceLibrary
from attnpass.tuner.search.result import RunResult
from attnpass.tuner.search.session import NotReproducedError, Session


def repeated(path, **more) -> RunResult:
    with Store(path) as store:
        return execute(inspect_task(settings(**more), store), store, QUIET)


def test_result_holds_what_was_measured(finished):
    result = finished.result
    facts = result.facts
    assert result.status == "done"
    assert facts.baseline_score == 1.0
    assert facts.crossed and facts.items == 60
    assert facts.ceiling > 0 and facts.baseline_ms > 0
    assert set(facts.saving_ms_per_site) == {"hydra", "skipat r=0"}
    assert facts.reliable is None and facts.conditions["threads"] >= 1
    assert set(facts.form_ratios) == set(facts.saving_ms_per_site)
    assert [*result.front, *result.slower]
    for row in [*result.front, *result.slower]:
        assert set(row.forms) == {f"blocks.{i}.attn" for i in range(3)}
        assert row.latency.ratio.pairs >= 7 and row.latency.p95_ms >= row.latency.ms
        # cross-fitted: at most the half that did not select the plan judges it
        assert row.held_out.items in (30, 60)


def test_several_shapes_and_scores_in_one_run(tmp_path):
    found = repeated(tmp_path / "a.db", task=f"{TASKS}:served", forms=("skipat r=0",))
    for row in [*found.front, *found.slower]:
        assert len(row.latency.shapes_ms) == 2 and row.others["logit"].items == row.held_out.items
        assert RunResult.from_dict(found.as_dict()).scored == found.scored
    assert found.scored and all(set(r.others) == {"logit"} for r in found.scored)
    again = repeated(tmp_path / "a.db", task=f"{TASKS}:served", forms=("skipat r=0",))
    assert again.front == found.front


def test_a_training_step_is_timed_where_that_is_the_objective(tmp_path):
    served = repeated(tmp_path / "a.db", forms=("skipat r=0",))
    found = repeated(tmp_path / "a.db", forms=("skipat r=0",), objective="train")
    assert found.run != served.run and found.facts.baseline_ms > 0
    assert found.facts.baseline_score == served.facts.baseline_score
    assert {r.plan for r in found.scored} == {r.plan for r in served.scored}


def test_a_spent_budget_ends_a_run_with_what_it_has(tmp_path):
    found = repeated(tmp_path / "a.db", budget=0.5)
    assert found.status == "done" and found.facts.baseline_ms > 0
    assert len([*found.front, *found.slower]) <= 1, "one finalist, though the time is over"


def test_nothing_is_converted_where_the_menu_is_softmax_alone(tmp_path):
    found = repeated(tmp_path / "a.db", forms=("softmax",))
    assert found.status == "done" and found.tried == 0 and not found.front


def test_tiles_of_the_task_are_searched_first(tmp_path):
    found = repeated(tmp_path / "a.db", tiles=2, forms=("relu",))
    with Store(tmp_path / "a.db") as store:
        kinds = [r["context"] for r in store.db.query("SELECT context FROM tiles")]
    assert {json.loads(x)["class"].split()[0] for x in kinds} == {"softmax", "relu"}
    assert found.status == "done"
    again = repeated(tmp_path / "a.db", tiles=2, forms=("relu",))
    assert again.run == found.run, "tiles that a run finds do not make it another"


def test_the_same_command_measures_nothing_again(finished, monkeypatch):
    before = rows(finished.path)
    monkeypatch.setattr(Worker, "_ask", lambda *_: pytest.fail("a latency was measured again"))
    again = repeated(finished.path)
    assert rows(finished.path) == before
    assert again.front == finished.result.front
    assert again.run == finished.result.run


def test_another_limit_reuses_what_is_measured(finished, monkeypatch):
    before = rows(finished.path)
    asked = []
    real = Worker._ask
    monkeypatch.setattr(Worker, "_ask", lambda self, r: asked.append(r) or real(self, r))
    repeated(finished.path, max_drop=0.2)
    assert len(asked) <= 1, "only other finalists may need the worker"
    assert all(rows(finished.path)[k] == v for k, v in before.items())


def test_ctrl_c_keeps_the_best_so_far(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "measure_finalists", interrupted)
    with Store(tmp_path / "a.db") as store:
        result = execute(inspect_task(settings(), store), store, QUIET)
        assert store.run("last")["status"] == "interrupted"
        assert store.run("last")["result"]["tried"] == 3
    assert result.status == "interrupted"
    assert result.tried == 3
    assert result.best is None


@pytest.mark.parametrize("stage", ["measure_baseline", "measure_ceiling", "measure_savings"])
def test_an_early_ctrl_c_has_the_facts_of_the_stages_before(finished, monkeypatch, stage):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, stage, interrupted)
    result = repeated(finished.path)
    facts = result.facts
    known = (facts.items, facts.ceiling, facts.saving_ms_per_site)
    reached = ["measure_baseline", "measure_ceiling", "measure_savings"].index(stage)
    assert [x is not None for x in known] == [i < reached for i in range(3)]
    assert (result.status, result.tried, result.front) == ("interrupted", 0, [])


def test_ctrl_c_while_judging_keeps_what_was_measured_of_the_finalists(finished, monkeypatch):
    def interrupted(candidates, finalists):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "judge_held_out", interrupted)
    result = repeated(finished.path)
    assert [r.plan for r in result.front] == [r.plan for r in finished.result.front]
    assert [r.latency for r in result.front] == [r.latency for r in finished.result.front]
    assert all(r.held_out is None for r in result.front)
    assert result.facts.finalists_floor == finished.result.facts.finalists_floor


def test_the_same_command_trains_nothing_again(recovered, monkeypatch):
    before = rows(recovered.path)
    monkeypatch.setattr(Worker, "_ask", lambda *_: pytest.fail("a latency was measured again"))
    monkeypatch.setattr(distillation, "train", lambda *_: pytest.fail("trained again"))
    again = repeated(recovered.path, **DISTIL)
    assert rows(recovered.path) == before and again.front == recovered.result.front


def test_what_cannot_be_distilled_stays_calibrated(tmp_path, monkeypatch):
    said = []

    def fails(*_):
        raise MeasureError("expected a finite loss, got nan")

    monkeypatch.setattr(run, "distil_pieces", fails)
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store, **DISTIL)
        monkeypatch.setattr(session.progress, "say", lambda text, style: said.append(text))
        library = PieceLibrary(inspection)
        library.calibrate(session)
        pieces = dict(library.pieces)
        assert (
            run.distil_useful(Distillation(inspection, session, ()), library, ["hydra"], 1.0) == {}
        )
    assert library.pieces == pieces
    assert len(said) == 1 and "got nan" in said[0]


def test_a_stored_plan_that_is_another_now_starts_the_run_anew(tmp_path):
    said, rounds = [], []
    with Store(tmp_path / "a.db") as store:
        session = Session("r", store, QUIET)
        session.progress = ProgressPrinter(quiet=True)
        session.progress.say = lambda text, style: said.append(text)

        def stages():
            rounds.append(session.refresh)
            yield "baseline"
            if len(rounds) == 1:
                raise NotReproducedError("stored scores of this task are not reproduced")
            yield "plans"

        assert list(run.believed(session, stages)) == ["baseline", "baseline", "plans"]
    assert rounds == [False, True]
    assert said == ["stored scores of this task are not reproduced; measured anew"]


class _Ticking(Budget):
    """A budget whose clock goes on by a second whenever it is read."""

    def __post_init__(self) -> None:
        reads = itertools.count()
        self.clock = lambda: float(next(reads))
        super().__post_init__()


@pytest.mark.slow
@pytest.mark.parametrize("forms", [("hydra",), ("hydra", "skipat r=0")])
@pytest.mark.parametrize("seconds", [1.0, 8.0, 16.0, 32.0])
def test_a_run_ends_with_a_result_wherever_its_budget_ends(tmp_path, monkeypatch, seconds, forms):
    monkeypatch.setattr(run, "Budget", _Ticking)
    monkeypatch.setattr(reserve, "COMPILE_S", 1.0)
    more = {"forms": forms, "recover": "distil", "recover_budget": 4.0}
    found = repeated(tmp_path / "a.db", budget=seconds, **more)
    assert found.status == "done"
    assert found.facts.cut or seconds > 1, "what was cut is told"
