"""The examples at small sizes: real weights read right, data disjoint, loops that train."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from shim import torchvision
from tuning import TINY

import attnpass
from attnpass.tuner.measure import accuracy

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "benchmarks")]

import encoder_speed  # noqa: E402
import minilm  # noqa: E402
import recovery  # noqa: E402
import train_forms  # noqa: E402


@pytest.fixture(scope="module")
def corpus():
    return minilm.data(10**6, 3400)


def test_the_encoder_is_the_published_model():
    torchvision()
    from transformers import BertModel

    theirs = BertModel.from_pretrained(minilm.folder()).eval()
    ids, keep = minilm.tokens(["Return the number of items in a container.", "Sort."], 16)
    assert keep.sum(1).tolist() == [11, 4]
    with torch.no_grad():
        hidden = theirs(ids, attention_mask=keep.long()).last_hidden_state
        weight = keep[..., None].float()
        want = (hidden * weight).sum(1) / weight.sum(1)
        want = torch.nn.functional.normalize(want, dim=-1)
        torch.testing.assert_close(minilm.encoder()(ids, keep), want, rtol=1e-4, atol=1e-5)


def test_entries_are_found_by_their_sentence_alone_and_disjoint_from_what_is_learnt(corpus):
    judged, others = corpus
    held_out = 0.6 * len(judged)
    assert held_out >= 2000 and len(others) == 3400
    assert len({e.sentence for e in judged}) == len({e.text for e in judged}) == len(judged)
    assert not any(e.sentence in " ".join(e.text.split()) for e in judged)
    taken = {(e.file, line) for e in judged for line in e.lines}
    assert not any((e.file, line) in taken for e in others for line in e.lines)
    assert not {e.text for e in judged} & {e.text for e in others}


def test_where_the_library_has_too_few_texts_torch_gives_more(corpus, monkeypatch):
    judged, others = corpus
    monkeypatch.setattr(minilm, "SPARE", minilm.SPARE / "nn")
    known = [*judged, *others]
    monkeypatch.setattr(minilm, "STDLIB", None)
    found = minilm._shuffled(minilm.SPARE)
    monkeypatch.setattr(minilm, "_shuffled", lambda root: found if root else known)
    assert minilm.data(10**6, 3400) == corpus
    same, more = minilm.data(10**6, 10**6)
    assert same == judged and more[:3400] == others and len(more) > 4000
    theirs = {minilm._signature(e) for e in judged}
    assert not theirs & {minilm._signature(e) for e in more[3400:]}
    left = {minilm._signature(e) for e in found if e not in more}
    assert left and left <= theirs


def test_the_task_finds_entries_and_can_be_converted(corpus, monkeypatch):
    monkeypatch.setattr(minilm, "entries", lambda _: [*corpus[0][:60], *corpus[1][:40]])
    task = minilm.task(60, 32)
    assert task.example[0].shape[1] == 256 and task.example[1].all()
    outputs = torch.cat([task.model(*given).detach() for given, _ in task.validation])
    targets = torch.cat([target for _, target in task.validation])
    found = task.score(outputs, targets)
    assert found.shape == (60,) and found.mean() > 0.6
    assert task.score(outputs.flip(0), targets).mean() < 0.1
    (whole, kept), _ = minilm.task(60, 32, 512).validation[0]
    (cut, _), _ = task.validation[0]
    assert torch.equal(whole[:, :255], cut[:, :255]) and kept.sum(1).max() > 256
    asked = []
    monkeypatch.setattr(minilm, "task", lambda **given: asked.append(given) or task)
    finer, long, _ = minilm.mrr(), minilm.mrr_512(), minilm.more()
    assert (
        asked == [{}, {"learn": 24000, "length": 512}, {"learn": 16000}]
        and long.score is finer.score
    )
    assert found.mean() < finer.score(outputs, targets).mean() < 1.0
    assert (task.metric, finer.metric) == ("recall@1", "MRR") and finer.model is task.model
    plan = attnpass.Plan.create(task.model, *task.example, form="sigmoid")
    assert [e.form for e in plan.sites.values()] == ["sigmoid"] * 6
    errors = attnpass.calibrate(task.model, plan, task.calibration[:1])
    assert all(0 < e < 0.5 for e in errors.values())


def test_lessons_hold_every_text_and_little_padding():
    counts = [5, 2, 9, 3, 9, 4, 2, 6]
    keep = torch.arange(12) < torch.tensor(counts)[:, None]
    ids = torch.where(keep, 10 * torch.arange(1, 9)[:, None] + torch.arange(12), 0)
    found = minilm.lessons(ids, keep)
    assert [tuple(x.shape) for x, _ in found] == [(4, 4), (4, 9)]
    rows = [row[own] for x, kept in found for row, own in zip(x, kept, strict=True)]
    every = [row[own] for row, own in zip(ids, keep, strict=True)]
    assert sorted(r.tolist() for r in rows) == sorted(r.tolist() for r in every)


def test_ranks_count_what_is_more_similar():
    outputs = torch.eye(3)
    sentences = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.5, 0.0], [0.3, 0.2, 0.1]])
    assert minilm.ranks(outputs, sentences).tolist() == [1, 2, 3]
    assert minilm.recall(outputs, sentences).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("name", ["hydra, last 3", "skipat r=2, layers 2 to 4"])
def test_a_training_loop_updates_the_model_and_the_plan(name, monkeypatch):
    before = []
    create = attnpass.Plan.create

    def kept(model, *args, **given):
        plan = create(model, *args, **given)
        named = [*model.named_parameters(), *(("plan", p) for p in plan.parameters())]
        before.extend((name, p, p.detach().clone()) for name, p in named)
        return plan

    monkeypatch.setattr(train_forms.Plan, "create", kept)
    hits, loss = train_forms.train(train_forms.CASES[name], 0, 1, "eager")
    assert 0 < hits < 1 and 0 < loss < 2.5
    # a skipped layer's own attention never runs
    unused = r"blocks\.[234]\.(attn|norm1)\." if "skipat" in name else "nothing"
    assert any(path == "plan" for path, _, _ in before)
    for path, new, old in before:
        assert torch.equal(new, old) == bool(re.match(unused, path)), path


def test_the_recovery_benchmark_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(recovery, "TASKS", {"digits": TINY})
    monkeypatch.setattr(accuracy, "HELD_OUT", 30)
    out = tmp_path / "rows.json"

    def run(stages: str) -> list[dict]:
        command = ["recovery.py", "digits", "--forms", "skipat", "--seeds", "1", "--steps", "2"]
        monkeypatch.setattr(sys, "argv", [*command, "--out", str(out), "--stages", stages])
        recovery.main()
        return json.loads(out.read_text())["rows"]

    (first,) = run("calibrate")
    rows = run("calibrate,both")
    assert rows[0] == first and [r["stage"] for r in rows] == ["calibrate", "both"]
    assert rows[1]["steps"] == 2 and rows[1]["items"] == 40
    halves = rows[0]["errors"]["halves"]
    assert sorted(halves) == ["blocks.1.attn", "blocks.2.attn"] and len(set(halves.values())) == 2
    assert rows[0]["sites"] == [min(halves, key=halves.__getitem__)]
    assert len(recovery.table(json.loads(out.read_text()))) == 3
    # what learned from other items is another row
    result = json.loads(out.read_text())
    result["rows"][1]["learned_from"] += 1
    out.write_text(json.dumps(result))
    assert run("calibrate,both")[:2] == result["rows"] and len(run("both")) == 3
    assert len(recovery.table(json.loads(out.read_text()))) == 4
    # what other items judged is no row of this file
    monkeypatch.setattr(recovery, "EVERY", {"digits"})
    monkeypatch.setattr(recovery, "WATCHED", {"tiny": (1, 10)})
    with pytest.raises(SystemExit, match="judged by 50 items .* got 40; choose another file"):
        run("local")


@pytest.mark.parametrize(
    ("design", "around"),
    [("skipat+sigmoid", "sigmoid"), ("skipat r=0.5", None), ("half-hydra", None)],
)
def test_the_recovery_benchmark_converts_half_of_the_layers(design, around, tmp_path, monkeypatch):
    monkeypatch.setattr(recovery, "TASKS", {"digits": TINY})
    monkeypatch.setattr(accuracy, "HELD_OUT", 30)
    command = "recovery.py digits --seeds 1 --steps 2 --stages global --rounds 0"
    folder, out = tmp_path / "plans", tmp_path / "rows.json"
    more = [f"--forms={design}", f"--plans={folder}", f"--out={out}"]
    monkeypatch.setattr(sys, "argv", [*command.split(), *more])
    recovery.main()
    (row,) = json.loads(out.read_text())["rows"]
    plan = attnpass.Plan.load(folder / f"{recovery._name(row)}.json")
    forms = {name: entry.form for name, entry in plan.sites.items()}
    halves = row["errors"]["halves"]
    half = min(halves, key=halves.__getitem__).split()
    assert 2 * len(half) <= len(forms)
    for name, form in forms.items():
        assert form == (recovery.HALF[design][0] if name in half else around or "softmax")
        assert name not in half or plan.sites[name].options == (recovery.HALF[design][1] or {})
    assert row["sites"] == [name for name, form in forms.items() if form != "softmax"]


def test_the_plans_that_are_timed_are_what_their_names_say():
    made = encoder_speed.plans(encoder_speed._task(8))
    forms = {name: [e.form for e in plan.sites.values()] for name, plan in made.items()}
    around = ["sigmoid"] * 2 + ["skipat"] * 3 + ["sigmoid"]
    assert forms["sigmoid"] == ["sigmoid"] * 6 and forms["skipat in half, else sigmoid"] == around
    assert forms["skipat in half"] == [x.replace("sigmoid", "softmax") for x in around]
    ids, keep = encoder_speed._task(8).example
    assert ids.shape == (minilm.BATCH, 8) and bool(keep.all())
