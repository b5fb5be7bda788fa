"""Recovery inside the tuner: pieces distilled once, reused by plans, ranked again afterwards."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_cli import run as command
from test_tuner import TASKS, rows, settings

from attnpass.errors import MeasureError, TaskError
from attnpass.recover import LocalLoss
from attnpass.recover.checkpoint import Checkpoint
from attnpass.recover.trainer import Trainer
from attnpass.store import Store
from attnpass.task import load_task
from attnpass.tuner.cli import seconds
from attnpass.tuner.measure.accuracy import Bound, scores
from attnpass.tuner.measure.worker import Worker
from attnpass.tuner.progress import Voice
from attnpass.tuner.search.candidate import Candidate
from attnpass.tuner.search.pieces import Bank
from attnpass.tuner.search.run import Run
from attnpass.tuner.show.tables import verdict

DISTIL = {"recover": "distil", "recover_budget": 12.0, "forms": ("hydra",)}


@pytest.fixture(scope="module")
def recovered(tmp_path_factory):
    """A finished run that distilled, its database, and the run."""
    path = tmp_path_factory.mktemp("bank") / "a.db"
    with Store(path) as store:
        run = Run(settings(**DISTIL), store, Voice(quiet=True))
        return run.execute(), path, run


def kinds(path: Path) -> dict[str, int]:
    connection = sqlite3.connect(path)
    found = dict(connection.execute("SELECT kind, count(*) FROM measurements GROUP BY kind"))
    connection.close()
    return found


def test_every_site_and_form_is_distilled_once(recovered):
    result, path, run = recovered
    bank = result["facts"]["bank"]
    assert list(bank) == ["hydra"] and set(bank["hydra"]["losses"]) == {
        f"blocks.{i}.attn" for i in range(3)
    }
    assert bank["hydra"]["steps"] > 0 and kinds(path)["bank"] == 1
    assert not list(path.parent.glob("*.distil"))
    with Store(path) as store:
        stored = store.plan(bank["hydra"]["plan"])
    for (site, _), (values, deltas) in run.bank.pieces.items():
        assert all(torch.equal(v, stored.values[site][k]) for k, v in values.items())
        assert set(deltas) == set(stored.deltas[site])
        assert any(p.abs().max() > 0 for d in deltas.values() for p in d.parameters())


def test_plans_are_made_of_the_pieces(recovered):
    _, _, run = recovered
    plan = run.bank.plan({"blocks.1.attn": "hydra"})
    values, deltas = run.bank.pieces["blocks.1.attn", "hydra"]
    assert plan.values == {"blocks.1.attn": values} and plan.deltas == {"blocks.1.attn": deltas}


def test_recovered_plans_are_ranked_beside_what_they_were(recovered):
    result, path, run = recovered
    with_recovery = [c for c in run.found.values() if c.recovery]
    assert with_recovery and kinds(path)["recovered"] == len(with_recovery)
    for c in with_recovery:
        before = run.bank.plan(c.assignment)
        assert before.hash in run.found and before.hash != c.plan.hash
        assert c.recovery["drop_before"] == run.found[before.hash].selection.drop
        assert c.recovery["steps"] > 0
    assert {r["plan"] for r in result["front"]} <= set(run.found)


def test_attention_that_stays_softmax_makes_up_for_the_identity(recovered):
    with Store(recovered[1]) as store:
        run = Run(settings(**DISTIL), store, Voice(quiet=True))
        run._baseline()
        run._calibrate()
        plan = run.bank.plan({"blocks.1.attn": "skipat r=0"})
        better, value = run.bank.recover(plan, 0.5, run.id)
        assert run._divergence(better) < run._divergence(plan)
    assert not plan.deltas and value["steps"] > 0
    assert set(better.deltas) == {"blocks.0.attn", "blocks.2.attn"}
    for site, deltas in better.deltas.items():
        assert better.sites[site].form == "softmax" and plan.sites[site].options == {}
        own = {f"{site}.{part}" for part in ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias")}
        assert set(deltas) == own
        assert all(p.abs().max() > 0 for d in deltas.values() for p in d.parameters())


def test_the_budget_says_how_many_plans_are_distilled(recovered):
    """60 % of 12 s: a global step costs what three local ones of one form do, a plan needs 150."""
    bank, one = recovered[2].bank, {"steps": 1000, "seconds": 3.9}
    assert bank.room({"hydra": one}) == 4
    assert bank.room({"hydra": one, "relu": one}) == 8
    assert bank.room({"hydra": {"steps": 10, "seconds": 10.0}}) == 1


@pytest.fixture
def judged(recovered, monkeypatch):
    """The run with four made-up plans, and these by name."""
    run = recovered[2]
    limit, plan = run.settings.max_drop, run.bank.plan({})
    rows = {"far": (0.5, 4, 0.3), "near": (0.7, 2, 0.2), "worse": (0.8, 2, 0.25)}
    made = {}
    for name, (cost, drop, moved) in (rows | {"close": (0.9, 1.5, 0.1)}).items():
        made[name] = Candidate({}, plan, run.base_ms * cost, latency={"divergence": moved})
        made[name].scores = run.base_selection - limit * drop
        made[name].selection = Bound(100, 0.5, limit * drop, limit * (drop + 1), 0.95)
    monkeypatch.setattr(run, "found", made)
    monkeypatch.setitem(run.facts, "baseline_ms", run.base_ms)
    monkeypatch.setattr(run, "split", replace(run.split, crossed=False))
    return run, made


def test_plans_out_of_reach_are_distilled_last(judged):
    run, made = judged
    assert run._hopeful(2) == [made["near"], made["close"]]
    assert run._hopeful(4) == [made["near"], made["close"], made["far"]]


def test_half_of_the_plans_go_on_in_every_round(judged, monkeypatch):
    run, made = judged
    trained = []
    monkeypatch.setattr(run, "settings", replace(run.settings, recover="distil"))
    monkeypatch.setattr(run.bank, "room", lambda _: 12)
    monkeypatch.setattr(run, "_hopeful", lambda count: list(made.values())[:count])
    monkeypatch.setattr(run, "_distilled", lambda c, share: trained.append((c, share)) or c)
    monkeypatch.setattr(run, "_worth", lambda c: list(made.values()).index(c))
    run._recover()
    far, near, worse, close = made.values()
    assert trained[:4] == [(c, 1 / 12) for c in (far, near, worse, close)]
    assert trained[4:] == [(close, 1 / 6), (worse, 1 / 6), (close, 1 / 3)]
    trained.clear()
    monkeypatch.setattr(run.bank, "room", lambda _: 11)
    run._recover()
    assert [share for _, share in trained] == [1 / 6] * 3 + [1 / 2], "three plans in two rounds"
    trained.clear()
    monkeypatch.setattr(run.bank, "room", lambda _: 3)
    run._recover()
    assert trained == [(far, 1.0)]


def test_a_plan_is_worth_its_gain_times_the_chance_of_a_proof(judged, monkeypatch):
    run, made = judged
    monkeypatch.setattr(run, "base_held_out", run.base_selection)
    sure = replace(made["close"], scores=run.base_selection.clone())
    risky = replace(made["close"], scores=run.base_selection.clone())
    risky.scores[:: round(1 / run.settings.max_drop)] -= 1.0
    assert 0 < run._worth(risky) < run._worth(sure) < run._gain(sure)
    assert run._gain(sure) == pytest.approx(1 / 0.9 - 1)
    assert run._worth(made["far"]) < 1e-6, "the fastest, but beyond proof"
    stopped = replace(sure, scores=sure.scores[:-1])
    assert run._worth(stopped) == 0, "scored in part"


def test_where_no_plan_keeps_the_limit_the_nearest_are_shown(judged):
    run, made = judged
    assert run._nearest() == [made["close"], made["near"], made["far"]]
    result = run._result([], "done")
    assert [r["estimate_ms"] for r in result["nearest"]] == [
        made[n].cost for n in ("close", "near", "far")
    ]
    said = verdict(result).splitlines()
    limit = run.settings.max_drop
    assert "no gain" in said[0] and len(said) == 4
    assert f"about 1.11x, drop {1.5 * limit:.2%}, at most {2.5 * limit:.2%}" in said[1]


def test_the_same_command_trains_nothing_again(recovered, monkeypatch):
    result, path, _ = recovered
    before = rows(path)
    monkeypatch.setattr(Worker, "_ask", lambda *_: pytest.fail("a latency was measured again"))
    monkeypatch.setattr(Bank, "_train", lambda *_: pytest.fail("a piece was trained again"))
    with Store(path) as store:
        again = Run(settings(**DISTIL), store, Voice(quiet=True)).execute()
    assert rows(path) == before and again["front"] == result["front"]


def test_another_form_leaves_the_stored_piece_alone(recovered, monkeypatch):
    _, path, run = recovered
    trained = []
    monkeypatch.setattr(
        Bank,
        "_train",
        lambda self, what, budget, name: (
            trained.append(name) or {"best": {}, "steps": 1, "seconds": 0.0},
            Checkpoint(None, name),
        ),
    )
    with Store(path) as store:
        other = Run(settings(**DISTIL | {"forms": ("hydra", "relu")}), store, Voice(quiet=True))
        other._baseline()
        other.base_ms = 1.0
        other._calibrate()
        monkeypatch.setattr(store, "put", lambda *a, **k: None)
        assert set(other.bank.distil(["hydra", "relu"], other.id)) == {"hydra", "relu"}
    assert trained == ["relu"]


def test_other_data_or_budget_is_a_miss(recovered):
    _, path, _ = recovered
    for change in ({"recover_budget": 5.0}, {"recover_rank": 1}, {"seed": 1}):
        with Store(path) as store:
            run = Run(settings(**DISTIL | change), store, Voice(quiet=True))
            run._baseline()
            run._calibrate()
            assert run._cached("bank", "hydra", run.bank._context()) is None
    with Store(path) as store:
        run = Run(settings(**DISTIL), store, Voice(quiet=True))
        run.task.recovery = [(torch.rand(4, 1, 32, 32),)]
        run._baseline()
        run._calibrate()
        assert run._cached("bank", "hydra", run.bank._context()) is None


@pytest.mark.parametrize("change", ["pooled", "outputs", "head", "program"])
def test_what_else_decides_a_score_is_part_of_its_key(recovered, change, monkeypatch):
    _, path, run = recovered
    task = load_task(f"{TASKS}:tiny")
    if change == "pooled":
        task.pooled = True
    elif change == "outputs":
        task.outputs = "features"
    elif change == "program":
        task.model.blocks[1].mlp[1] = torch.nn.ReLU()
    else:
        task.model.head.bias.data.add_(1.0)
    monkeypatch.setattr("attnpass.tuner.search.run.load_task", lambda _: task)
    with Store(path) as store:
        other = Run(settings(**DISTIL), store, Voice(quiet=True))
        assert store.get("accuracy", "baseline scores", run.context)[0] is not None
        why = {"head": "weights", "program": "program"}.get(change, "data")
        missed = store.get("accuracy", "baseline scores", other.context)
        assert missed == (None, f"{why} changed")


def test_ctrl_c_ends_training_which_then_goes_on(tmp_path, monkeypatch):
    path = tmp_path / "a.db"
    steps = []
    train = Trainer._step

    def counted(self, inputs):
        steps.append(self.done.steps)
        return train(self, inputs)

    monkeypatch.setattr(Trainer, "_step", counted)
    monkeypatch.setattr(Trainer, "_over", lambda self: self.done.steps >= 3)
    with Store(path) as store:
        run = Run(settings(**DISTIL), store, Voice(quiet=True))
        run._baseline()
        run.base_ms = 1.0
        run._calibrate()
        run.useful = ["hydra"]
        run.stopped = True
        with pytest.raises(KeyboardInterrupt):
            plans = {"hydra": run.bank._everywhere("hydra")}
            run.bank._train(LocalLoss(run.capture, plans), 2.0, "hydra")
        assert steps == [0] and len(list(tmp_path.glob("*.distil"))) == 1
        run.stopped = False
        plans = {"hydra": run.bank._everywhere("hydra")}
        _, saved = run.bank._train(LocalLoss(run.capture, plans), 2.0, "hydra")
        assert list(tmp_path.glob("*.distil")), "kept until the result is stored"
        saved.remove()
    assert steps == [0, 1, 2] and not list(tmp_path.glob("*.distil"))


def test_pooled_scores_see_the_whole_split(tmp_path):
    task = load_task(f"{TASKS}:retrieval")
    every = range(len(task.validation))
    found, complete = scores(task, task.model, every)
    assert complete and found.tolist() == [1.0] * 60
    # a constant answer finds one of the whole split, not one of every batch
    flat, _ = scores(task, lambda x: torch.zeros(len(x), 10), every)
    assert float(flat.sum()) == 1.0
    with Store(tmp_path / "a.db") as store:
        run = Run(settings(task=f"{TASKS}:retrieval"), store, Voice(quiet=True))
        run._baseline()
        assert run.base_selection.tolist() == [1.0] * 60 and run.facts["items"] == 60


@pytest.mark.parametrize(
    ("text", "want"), [("90", 90.0), ("90s", 90.0), ("5m", 300.0), ("1.5h", 5400.0)]
)
def test_times(text, want):
    assert seconds(text, "--x") == want


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recover", "labels"], "expected to recover by calibrate or distil, got 'labels'"),
        (["--recover-budget", "soon"], "expected --recover-budget like 90s, 5m or 1h, got 'soon'"),
        (["--recover-budget", "inf"], "expected a recover-budget > 0, got inf s"),
        (["--recover-budget", "0"], "expected a recover-budget > 0, got 0 s"),
        (["--recover-rank", "-1"], "expected a recover-rank >= 0, got -1"),
    ],
)
def test_wrong_options_are_one_line(arguments, message, tmp_path):
    done = command("tune", f"{TASKS}:tiny", *arguments, "--json", db=tmp_path / "a.db")
    assert done.returncode == 1 and message in json.loads(done.stdout)["error"]


def test_outputs_of_a_task_are_checked():
    with pytest.raises(TaskError, match="expected outputs of .* to be 'logits' or 'features'"):
        load_task(f"{TASKS}:wrong_outputs")


def test_what_cannot_be_distilled_stays_calibrated(recovered, monkeypatch):
    run, said = recovered[2], []

    def fails(*_):
        raise MeasureError("expected a finite loss, got nan")

    monkeypatch.setattr(run.voice, "say", said.append)
    monkeypatch.setattr(run.bank, "distil", fails)
    monkeypatch.setattr(run.bank, "recover", fails)
    pieces, found = dict(run.bank.pieces), dict(run.found)
    run._distil()
    candidate = next(iter(found.values()))
    assert run._distilled(candidate, 0.5) is candidate
    assert (run.bank.pieces, run.found) == (pieces, found)
    assert len(said) == 2 and all("got nan" in line for line in said)


def test_training_that_fails_leaves_the_pieces_calibrated(tmp_path, monkeypatch):
    step = Trainer._step

    def fails(self, inputs):
        step(self, inputs)
        if self.done.steps == 3:
            raise MeasureError("expected a finite loss, got nan")
        return 1.0

    monkeypatch.setattr(Trainer, "_step", fails)
    with Store(tmp_path / "a.db") as store:
        run = Run(settings(**DISTIL), store, Voice(quiet=True))
        run._baseline()
        run._calibrate()
        run.useful = ["hydra"]
        before = run.bank.plan(dict.fromkeys(run.base.sites, "hydra")).hash
        run._distil()
    assert "bank" not in run.facts and len(run.bank.pieces) == 3
    assert run.bank.plan(dict.fromkeys(run.base.sites, "hydra")).hash == before


def test_the_command_distils_a_model_whose_arguments_are_named(tmp_path):
    given = ("--inner", "eager", "--forms", "hydra", "--trials", "2", "--max-drop", "0.5")
    budget = ("--recover", "distil", "--recover-budget", "8s")
    out = ("--json", "--out", str(tmp_path))
    done = command(
        "tune", f"{TASKS}:named", *given, *budget, *out, db=tmp_path / "a.db", apart=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["status"] == "done" and result["settings"]["recover"] == "distil"
    trained = [c for c in result["front"] if c["recovery"]]
    assert trained and all(c["recovery"]["steps"] > 0 for c in trained)
    for name in ("sites", "cka", "roundtrip"):
        shown = command(name, f"{TASKS}:named", "--json")
        assert shown.returncode == 0 and len(json.loads(shown.stdout)["sites"]) == 3, name
