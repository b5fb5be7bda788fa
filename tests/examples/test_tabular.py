"""The script that trains the tables' model, at a small size; the task of the weights it ships."""

from __future__ import annotations

import pytest
import torch
from scripts import tabular

import attnpass


def test_a_short_training_goes_from_few_rows_to_many(monkeypatch, capsys):
    small = lambda: model(8, 1, 2)  # noqa: E731
    model = tabular.PriorFitted
    monkeypatch.setattr(tabular, "PriorFitted", small)
    monkeypatch.setattr(tabular, "STAGES", ((2, 2, 16, 1e-3), (2, 1, 32, 1e-3)))
    monkeypatch.setattr(tabular, "tables", lambda: [])
    trained = tabular.train()
    assert len(trained.blocks) == 1
    first, _, second, real = capsys.readouterr().out.splitlines()
    assert first.startswith("16 rows, step 2: loss") and second.startswith("32 rows, step 2: loss")
    assert real == "{}"


def test_a_row_without_a_label_is_seen_by_no_other():
    torch.manual_seed(0)
    model = tabular.PriorFitted(8, 2, 2)
    rows, labels = tabular.synthetic(2, 12, 4)
    out = model(rows, labels[:, :12])
    rows[:, 13] += 1.0
    moved = (model(rows, labels[:, :12]) - out).abs().sum((0, 2))
    assert moved[1] > 0 and moved[[0, 2, 3]].tolist() == [0.0, 0.0, 0.0]


def test_synthetic_tables_are_scaled_by_the_labelled_rows():
    torch.manual_seed(0)
    kinds = set()
    for _ in range(20):
        rows, labels = tabular.synthetic(2, 64, 8)
        assert rows.shape == (2, 72, tabular.FEATURES) and labels.shape == (2, 72)
        known = rows[:, :64]
        assert known.mean(1).abs().max() < 1e-5
        used = (known != 0).any(1).sum(1)
        mean = known.square().sum((1, 2)) / used / 64
        assert torch.allclose(mean, torch.ones(2), atol=1e-4)
        assert {*labels.unique().tolist()} <= {*range(tabular.CLASSES)}
        kinds.add(len(labels.unique()))
    assert len(kinds) > 3, "tables of several numbers of classes"


def test_no_asked_row_is_in_its_context_and_each_is_asked_once():
    sets = tabular.real()
    small = {name: sets[name] for name in ("wine", "iris")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tabular, "real", lambda: small)
        patch.setattr(tabular, "ASKED", 50)
        patch.setattr(tabular, "_projected", lambda x: x)
        found = tabular.tables()
    assert sorted(name for name, _, _ in found) == ["iris"] * 3 + ["wine"] * 3
    asked = {name: [] for name in small}
    for name, x, y in found:
        assert x.shape[0] == y.shape[0] == tabular.CONTEXT + 50
        every, values = small[name]
        positions = (x[:, None] == every[None]).all(-1)
        # a set may hold a row twice
        assert all(values[row].eq(label).any() for row, label in zip(positions, y, strict=True))
        asked[name] += [tuple(row.tolist()) for row in x[tabular.CONTEXT :]]
        once = every.unique(dim=0, return_counts=True)
        single = {tuple(r.tolist()) for r, n in zip(*once, strict=True) if n == 1}
        context = {tuple(row.tolist()) for row in x[: tabular.CONTEXT]}
        assert not single & context & set(asked[name][-50:])
    assert sorted(asked["iris"]) == sorted(tuple(r.tolist()) for r in small["iris"][0])


@pytest.mark.slow
def test_the_task_attends_to_1024_labelled_rows():
    task = tabular.task()
    sites = attnpass.Capture(task.model).trace(*task.example).sites
    assert len(sites) == 6 and {s.key_len for s in sites} == {1024}
    assert all(s.legal["hydra"] is None for s in sites)
    assert sum(len(target) for _, target in task.validation) >= 3334, "2000 are held out"
    with torch.no_grad():
        scores = [task.score(task.model(*inputs), y).mean() for inputs, y in task.validation[:8]]
    assert float(torch.stack(scores).mean()) > 0.8
