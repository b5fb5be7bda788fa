"""Pieces are fitted once and plans are made of them."""

from __future__ import annotations

import pytest
import torch
from tuning import TINY, opened

from attnpass import Capture
from attnpass.plan import assign
from attnpass.recover import fit_sites, observe
from attnpass.store import Store
from attnpass.task import load_task
from attnpass.tuner.search.budget import Budget
from attnpass.tuner.search.pieces import PieceLibrary


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("sigmoid", {}),
        ("relu", {}),
        ("relu", {"h": "gelu"}),
        ("hydra", {}),
        ("skipat", {"r": 1.0, "kernel": 3}),
    ],
)
def test_calibration_brings_every_site_nearer_to_softmax(form, options):
    task = load_task(TINY)
    capture = Capture(task.model).trace(*task.example)
    observed = observe(capture, task.calibration)
    # skipat leaves the class token as it is: convert one layer, which later layers read
    entries, _ = assign(capture.sites, form, options, "blocks.1.*" if form == "skipat" else None)
    start, fitted = capture.plan(entries), capture.plan(entries)

    def distance(plan):
        with torch.no_grad():
            capture.use(None)
            expected = capture(*task.example)
            capture.use(plan)
            out = capture(*task.example)
        return float((out - expected).norm())

    errors = fit_sites(capture, fitted, observed)
    assert set(errors) == {n for n, e in fitted.sites.items() if e.form == form}
    assert all(0 <= e < 1 for e in errors.values())
    assert distance(fitted) < distance(start)
    assert fitted.hash != start.hash


def test_observing_leaves_the_model_as_it_was():
    task = load_task(TINY)
    capture = Capture(task.model).trace(*task.example)
    with torch.no_grad():
        before = capture(*task.example)
        observed = observe(capture, task.calibration)
        after = capture(*task.example)
    assert torch.equal(before, after)
    assert {n: sum(s.q.shape[0] for s in x) for n, x in observed.samples.items()} == {
        f"blocks.{i}.attn": 8 for i in range(3)
    }
    assert set(observed.blocks) == {"blocks.1.attn", "blocks.2.attn"}


def test_plans_are_made_of_the_pieces(recovered):
    library = recovered.candidates.library
    plan = library.plan({"blocks.1.attn": "hydra"})
    values, deltas = library.pieces["blocks.1.attn", "hydra"]
    assert plan.values == {"blocks.1.attn": values} and plan.deltas == {"blocks.1.attn": deltas}


def test_a_choice_is_fitted_wherever_it_is_legal(tmp_path):
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store)
        library = PieceLibrary(inspection)
        errors = library.calibrate(session)
    assert {c: list(row) for c, row in errors.items()} == {
        "hydra": [f"blocks.{i}.attn" for i in range(3)],
        "skipat r=0": ["blocks.1.attn", "blocks.2.attn"],
    }
    assert set(library.pieces) == {(s, c) for c, row in errors.items() for s in row}
    plan = library.everywhere("skipat r=0")
    assert [e.form for e in plan.sites.values()] == ["softmax", "skipat", "skipat"]
    site = "blocks.1.attn"
    assert library.everywhere("hydra").values[site] is library.pieces[site, "hydra"][0]


def test_the_most_important_choices_are_fitted_while_there_is_time(tmp_path):
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store)
        session.budget, needed = Budget(100.0, lambda: 0.0), iter([150.0])
        library = PieceLibrary(inspection)
        errors = library.calibrate(session, ["skipat r=0", "hydra"], lambda: next(needed))
    assert list(errors) == ["skipat r=0"] and session.budget.cut == ["calibration: hydra"]


def test_ctrl_c_ends_calibration_and_keeps_what_was_fitted(tmp_path, monkeypatch):
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store)
        library = PieceLibrary(inspection)
        keep = library.keep
        monkeypatch.setattr(
            library, "keep", lambda *a: (keep(*a), setattr(session.stop, "requested", True))
        )
        with pytest.raises(KeyboardInterrupt):
            library.calibrate(session)
    assert {choice for _, choice in library.pieces} == {"hydra"}
