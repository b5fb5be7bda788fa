"""Pieces and plans are distilled once, go on where they stopped, and fail without a trace."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tuning import DISTIL, opened, pool

from attnpass.errors import MeasureError
from attnpass.recover import Checkpoint, LocalLoss, Trainer
from attnpass.recover.schedule import Pace
from attnpass.store import Store
from attnpass.tuner.search import distillation as module
from attnpass.tuner.search.baseline import measure_baseline
from attnpass.tuner.search.distillation import (
    LOCAL_SHARE,
    Distillation,
    affordable_plans,
    distil_pieces,
    distil_plan,
    train,
    worth_distilling,
)
from attnpass.tuner.search.pieces import PieceLibrary
from attnpass.tuner.search.result import DistilledChoice
from attnpass.tuner.search.run import distil_useful


def kinds(path: Path) -> dict[str, int]:
    connection = sqlite3.connect(path)
    found = dict(connection.execute("SELECT kind, count(*) FROM measurements GROUP BY kind"))
    connection.close()
    return found


def calibrated(store: Store, **more) -> tuple[Distillation, PieceLibrary]:
    inspection, session = opened(store, **DISTIL | more)
    measure_baseline(inspection, session)
    library = PieceLibrary(inspection)
    library.calibrate(session)
    return Distillation(inspection, session, ()), library


def test_every_site_and_form_is_distilled_once(recovered):
    bank = recovered.result.facts.bank
    assert list(bank) == ["hydra"] and set(bank["hydra"].losses) == {
        f"blocks.{i}.attn" for i in range(3)
    }
    assert bank["hydra"].steps > 0 and kinds(recovered.path)["bank"] == 1
    assert not list(recovered.path.parent.glob("*.distil"))
    with Store(recovered.path) as store:
        stored = store.plan(bank["hydra"].plan)
    for (site, _), (values, deltas) in recovered.candidates.library.pieces.items():
        assert all(torch.equal(v, stored.values[site][k]) for k, v in values.items())
        assert set(deltas) == set(stored.deltas[site])
        assert any(p.abs().max() > 0 for d in deltas.values() for p in d.parameters())


def test_attention_that_stays_softmax_makes_up_for_the_identity(tmp_path, monkeypatch):
    # as many steps on a busy machine as on an idle one
    monkeypatch.setattr(Pace, "progress", lambda self, stage: (stage.steps + 1) / 40)
    monkeypatch.setattr(Trainer, "_over", lambda self: self.done.steps >= 40)
    with Store(tmp_path / "a.db") as store:
        candidates = pool(store, **DISTIL)
        candidates.library.calibrate(candidates.session)
        distillation = Distillation(candidates.inspection, candidates.session, ())
        plan = candidates.library.plan({"blocks.1.attn": "skipat r=0"})
        better, recovery = distil_plan(distillation, plan, 1.0, 2.0)
        assert candidates.divergence(better) < candidates.divergence(plan)
    assert not plan.deltas and recovery.steps > 0
    assert set(better.deltas) == {"blocks.0.attn", "blocks.2.attn"}
    for site, deltas in better.deltas.items():
        assert better.sites[site].form == "softmax" and plan.sites[site].options == {}
        own = {f"{site}.{part}" for part in ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias")}
        assert set(deltas) == own
        assert all(p.abs().max() > 0 for d in deltas.values() for p in d.parameters())


def test_the_budget_says_how_many_plans_are_distilled():
    """Of 7.2 s: a global step costs what three local ones of one form do, a plan needs 150."""
    one, slow = DistilledChoice("", {}, 1000, 3.9), DistilledChoice("", {}, 10, 10.0)
    assert affordable_plans(7.2, {"hydra": one}) == 4
    assert affordable_plans(7.2, {"hydra": one, "relu": one}) == 8
    assert affordable_plans(7.2, {"hydra": slow}) == 1
    assert affordable_plans(7.2, {"hydra": DistilledChoice("", {}, 0, 0.0)}) == 1
    assert affordable_plans(700.0, {}, steps=True) == 4
    assert affordable_plans(20.0, {}, steps=True) == 1


def whole(distillation: Distillation) -> float:
    """All seconds or steps of the local stage."""
    return distillation.inspection.settings.recover_amount * LOCAL_SHARE


def test_what_another_choice_beats_everywhere_is_not_distilled():
    half, small, large = "skipat r=0.5", "skipat r=1 kernel=3", "skipat r=1 kernel=5"
    saved = {"hydra": 9.0, half: 8.0, large: 7.0, small: 7.1, "relu": 1.0, "relu2": 0.9}
    errors = {
        "hydra": {"a": 0.8, "b": 0.9},
        half: {"b": 0.2},
        small: {"b": 0.1},
        large: {"b": 0.15},
        "relu": {"a": 0.1, "b": 0.3},
        "relu2": {"a": 0.2, "b": 0.2},
    }
    assert worth_distilling(saved, errors) == ["hydra", half, small, "relu"]
    assert "relu2" in worth_distilling({c: saved[c] for c in ("relu", "relu2")}, errors)
    assert worth_distilling(saved, {}) == ["hydra", half, small, "relu"], "two of a form"
    assert worth_distilling({}, {}) == []


def test_training_that_had_half_of_the_time_is_another_one(recovered):
    with Store(recovered.path) as store:
        distillation, _ = calibrated(store)
        assert distillation.training(10.0, 10.0) == distillation.context
        assert distillation.training(8.0, 10.0) == distillation.context
        assert distillation.training(5.0, 10.0)["halved"] == 1
        assert distillation.training(0.0, 10.0)["halved"] == 13


def test_another_form_leaves_the_stored_piece_alone(recovered, monkeypatch):
    trained = []

    def noted(distillation, objective, budget, name):
        trained.append(name)
        return {"best": {}, "steps": 1, "seconds": 0.0}, Checkpoint(None, name)

    monkeypatch.setattr(module, "train", noted)
    with Store(recovered.path) as store:
        distillation, library = calibrated(store, forms=("hydra", "relu"))
        monkeypatch.setattr(store, "put", lambda *a, **k: None)
        found = distil_pieces(distillation, library, ["hydra", "relu"], whole(distillation))
        assert set(found) == {"hydra", "relu"}
    assert trained == ["relu"]


def test_other_data_or_budget_is_a_miss(recovered):
    for change in ({"recover_budget": 5.0}, {"recover_rank": 1}, {"seed": 1}):
        with Store(recovered.path) as store:
            distillation, _ = calibrated(store, **change)
            assert distillation.session.find("bank", "hydra", distillation.context) is None
    with Store(recovered.path) as store:
        same, _ = calibrated(store)
        assert same.session.find("bank", "hydra", same.context) is not None
        inspection = replace(same.inspection, inputs="of other batches")
        other = replace(same, inspection=inspection)
        assert other.session.find("bank", "hydra", other.context) is None
        watched = replace(same, watched=(0, 1))
        assert watched.session.find("bank", "hydra", watched.context) is None


def test_ctrl_c_ends_training_which_then_goes_on(tmp_path, monkeypatch):
    steps = []
    step = Trainer._step

    def counted(self, inputs):
        steps.append(self.done.steps)
        return step(self, inputs)

    monkeypatch.setattr(Trainer, "_step", counted)
    monkeypatch.setattr(Trainer, "_over", lambda self: self.done.steps >= 3)
    with Store(tmp_path / "a.db") as store:
        distillation, library = calibrated(store)
        stop, capture = distillation.session.stop, distillation.inspection.capture
        _ = distillation.context
        stop.requested = True
        with pytest.raises(KeyboardInterrupt):
            plans = {"hydra": library.everywhere("hydra")}
            train(distillation, LocalLoss(capture, plans), 2.0, "hydra")
        assert steps == [0] and len(list(tmp_path.glob("*.distil"))) == 1
        stop.requested = False
        plans = {"hydra": library.everywhere("hydra")}
        _, saved = train(distillation, LocalLoss(capture, plans), 2.0, "hydra")
        assert list(tmp_path.glob("*.distil")), "kept until the result is stored"
        saved.remove()
    assert steps == [0, 1, 2] and not list(tmp_path.glob("*.distil"))


def test_steps_make_distillation_the_same_in_every_run_also_after_an_interruption(
    tmp_path, monkeypatch
):
    step, fails = Trainer._step, {}

    def interrupted(self, inputs):
        if self.done.steps == fails.get(self.done.name):
            del fails[self.done.name]
            self._save()
            raise KeyboardInterrupt
        return step(self, inputs)

    monkeypatch.setattr(Trainer, "_step", interrupted)

    def learnt(path: Path) -> tuple[dict[str, torch.Tensor], int, int]:
        """Tensors of a plan after both stages, and the steps of each."""
        with Store(path) as store:
            distillation, library = calibrated(store, recover_steps=10, recover_budget=0.0)
            pieces = distil_pieces(distillation, library, ["hydra"], whole(distillation))
            plan = library.plan({"blocks.1.attn": "hydra"})
            better, recovery = distil_plan(distillation, plan, 0.5, 6.0)
            return better.tensors(), pieces["hydra"].steps, recovery.steps

    want, *steps = learnt(tmp_path / "a.db")
    assert steps == [4, 3]
    fails.update({"local": 2, "global": 1})
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            learnt(tmp_path / "b.db")
    got, *steps = learnt(tmp_path / "b.db")
    assert steps == [4, 3] and not fails
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], value) for name, value in want.items())


def test_training_that_fails_leaves_the_pieces_calibrated(tmp_path, monkeypatch):
    step = Trainer._step

    def fails(self, inputs):
        step(self, inputs)
        if self.done.steps == 3:
            raise MeasureError("expected a finite loss, got nan")
        return 1.0

    monkeypatch.setattr(Trainer, "_step", fails)
    monkeypatch.setattr(Trainer, "_over", lambda self: False)  # however busy the machine is
    with Store(tmp_path / "a.db") as store:
        distillation, library = calibrated(store)
        everywhere = dict.fromkeys(distillation.inspection.base.sites, "hydra")
        before = library.plan(everywhere).hash
        assert distil_useful(distillation, library, ["hydra"], 1.0) == {}
    assert len(library.pieces) == 3
    assert library.plan(everywhere).hash == before


def test_a_plan_in_which_nothing_learns_is_not_distilled(tmp_path):
    with Store(tmp_path / "a.db") as store:
        distillation, library = calibrated(store, recover_rank=0)
        assert distil_plan(distillation, library.plan({}), 0.5, 1.0) is None


def test_a_stored_piece_that_is_damaged_is_distilled_again(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        module, "_train_pieces", lambda _, plans, seconds: asked.append(list(plans)) or {}
    )
    with Store(tmp_path / "a.db") as store:
        distillation, library = calibrated(store)
        plan = store.save_plan(library.everywhere("hydra"))
        row = DistilledChoice(plan, {}, 3, 1.0)
        distillation.session.keep("bank", "hydra", distillation.context, row.as_dict())
        assert distil_pieces(distillation, library, ["hydra"], whole(distillation)) == {
            "hydra": row
        }
        with store.transaction():
            store.db.execute("UPDATE plans SET parameters = x'00'")
        assert distil_pieces(distillation, library, ["hydra"], whole(distillation)) == {}
    assert asked == [[], ["hydra"]]
