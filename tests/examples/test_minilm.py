"""The MiniLM example: real weights read right, entries and texts to learn from disjoint."""

from __future__ import annotations

import pytest
import torch
from scripts import minilm
from shim import torchvision

import attnpass


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
