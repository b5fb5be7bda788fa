"""The script that trains the byte model, at a small size; the task of the weights it ships."""

from __future__ import annotations

import math

import pytest
import torch
from scripts import byte_model

import attnpass


@pytest.fixture
def short(monkeypatch):
    """Texts of few bytes, and a model of one layer."""
    made = byte_model.ByteModel
    monkeypatch.setattr(byte_model, "ByteModel", lambda: made(16, 1, 2))
    text = torch.arange(5000, dtype=torch.uint8).remainder(251)
    monkeypatch.setattr(byte_model, "texts", lambda: (text, text.flip(0)))
    monkeypatch.setattr(byte_model, "JUDGED", 4)


def test_a_short_training_goes_from_short_texts_to_long_ones(monkeypatch, capsys, short):
    monkeypatch.setattr(byte_model, "STAGES", ((2, 2, 256, 1e-3), (2, 1, 1024, 1e-3)))
    model = byte_model.train()
    lines = capsys.readouterr().out.splitlines()
    assert [x.partition(":")[0] for x in lines] == [
        "256 bytes, step 2",
        "judged",
        "1024 bytes, step 2",
        "judged",
    ]
    places = model.places.weight
    assert torch.allclose(places[:256], places[256:512], atol=0.02), "spread from the first"


def test_no_place_sees_a_later_byte():
    torch.manual_seed(0)
    model = byte_model.ByteModel(16, 2, 2)
    text = torch.randint(256, (1, 32))
    out = model(text)
    text[0, 20] += 1 if text[0, 20] < 255 else -1
    moved = (model(text) - out).abs().sum((0, 2))
    assert not moved[:20].any() and moved[20] > 0


def test_spans_are_scored_in_the_order_of_the_sequences(short):
    (inputs, spans), *_ = byte_model.validation()
    (text,) = inputs
    assert text.shape == (4, 1024) and spans.shape == (16, 256)
    assert torch.equal(spans.view(4, 1024)[:, :-1], text[:, 1:])
    sure = torch.nn.functional.one_hot(spans.view(4, 1024), 256) * 100.0
    sure[2, 256:512] = 0.0
    scores = byte_model.bits(sure, spans)
    want = torch.zeros(16)
    want[2 * 4 + 1] = -math.log2(256)
    assert torch.allclose(scores, want, atol=1e-4)


def test_no_file_trains_and_judges():
    train, judge = byte_model.texts()
    assert len(train) > 2 * len(judge) > 2 * 1024 * byte_model.JUDGED
    lines = lambda x: set(bytes(x.tolist()).splitlines())  # noqa: E731
    long = {x for x in lines(train) & lines(judge) if len(x) > 90}
    assert len(long) < 0.01 * len(lines(judge))


@pytest.mark.slow
def test_the_task_has_six_causal_layers_of_1024_bytes():
    task = byte_model.task()
    sites = attnpass.Capture(task.model).trace(*task.example).sites
    assert len(sites) == 6 and {s.query_len for s in sites} == {1024}
    assert all("causal" in s.mask and s.legal["hydra"] is None for s in sites)
    assert sum(len(target) for _, target in task.validation) == 3600
    with torch.no_grad():
        inputs, spans = task.validation[0]
        assert -float(task.score(task.model(*inputs), spans).mean()) < 3.5
