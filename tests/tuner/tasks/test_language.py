"""Tasks of small models of transformers: every kind, its columns, lengths and labels."""

from __future__ import annotations

import json

import pytest
import torch
from small_models import WORDS, json_lines, sentences, text_model

from attnpass import Capture
from attnpass.batch import call
from attnpass.errors import TaskError
from attnpass.task import load_task
from attnpass.tuner.measure import scores, try_task
from attnpass.tuner.search.leaks import refuse_leaks
from attnpass.tuner.tasks import complete, described

COUNT = 80


def table(path, kind):
    texts = sentences(COUNT)
    rows = {
        "text-classification": [
            {"review": t, "label": ("neg", "pos")[i % 2]} for i, t in enumerate(texts)
        ],
        "token-classification": [
            {"tokens": t.split(), "ner_tags": [i % 3 for i in range(len(t.split()))]}
            for t in texts
        ],
        "embedding": [{"query": t.split()[0], "text": t} for t in texts],
        "masked-lm": [{"text": t} for t in sentences(400)],
        "causal-lm": [{"text": t} for t in sentences(400)],
    }
    return json_lines(path / "rows.jsonl", rows[kind])


NAMES = {"label2id": {"NEG": 0, "POS": 1}, "id2label": {0: "NEG", 1: "POS"}}
GIVEN = {"text-classification": NAMES, "token-classification": {"num_labels": 3}}
KINDS = ("text-classification", "token-classification", "embedding", "masked-lm", "causal-lm")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        made[kind] = text_model(folder, kind, **GIVEN.get(kind, {})), table(folder, kind)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_found_out_and_makes_a_task(folders, kind):
    model, data = folders[kind]
    length = "&length=32" if kind.endswith("lm") else ""
    text = f"hf:{model}?data={data}{length}&batch=4"
    task = try_task(load_task(text))
    assert task.path == text
    refuse_leaks(task, learns=True)
    found = complete(described(text))[1]
    assert found.kind == kind and found.batch == 4 and found.length == 32
    capture = call(Capture(task.model).trace, task.example)
    assert len(capture.sites) == 2
    assert all(s.name.startswith(("encoder.layer", "bert.", "model.")) for s in capture.sites)
    got = scores(task, capture, range(len(task.validation))).main
    want = scores(task, task.model, range(len(task.validation))).main
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    # the same contents in another process: nothing is drawn anew
    assert load_task(text).contents() == task.contents() and not task.contents().opaque


def test_words_of_a_text_are_not_padded_to_learn_from(folders):
    model, data = folders["text-classification"]
    task = load_task(f"hf:{model}?data={data}&length=64")
    assert task.example["input_ids"].shape[1] == 64
    assert {batch["input_ids"].shape[1] for batch in task.recovery} == {32}


def test_embeddings_without_queries_are_compared_with_the_originals(folders):
    model, data = folders["embedding"]
    task = load_task(f"hf:{model}?data={data}&text=text")
    assert task.metric == "cosine" and not task.pooled
    found = scores(task, task.model, range(len(task.validation))).main
    torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=1e-5)


def test_a_folder_of_sentence_transformers(folders, tmp_path):
    model, data = folders["embedding"]
    rows = [{"type": "s.Transformer", "path": ""}, {"type": "s.Pooling", "path": "1_Pooling"}]
    (model / "modules.json").write_text(json.dumps(rows))
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    task = load_task(f"st:{model}?data={data}")
    assert task.metric == "MRR" and task.outputs == "features"
    batch, _ = task.validation[0]
    with torch.no_grad():
        out = task.model(**batch)
        want = type(task.model).__mro__[2].forward(task.model, **batch)[0][:, 0]
    assert torch.equal(out, want)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("text-classification", "&label=tag", "expected a column tag for the label"),
        ("text-classification", "&metric=MRR", "expected a metric of accuracy"),
        ("text-classification", "&length=100", "expected a length up to 64"),
        ("embedding", "&text=text&metric=MRR", "expected two columns, of queries and texts"),
        ("causal-lm", "&items=2&length=32", "expected at least 40 different items to judge by"),
    ],
)
def test_what_does_not_fit_is_said(folders, kind, options, message):
    model, data = folders[kind]
    with pytest.raises(TaskError, match=message):
        load_task(f"hf:{model}?data={data}{options}")


def test_labels_that_the_model_does_not_know(folders, tmp_path):
    model, _ = folders["text-classification"]
    rows = [{"text": t, "label": "maybe"} for t in sentences(COUNT)]
    data = json_lines(tmp_path / "rows.jsonl", rows)
    with pytest.raises(TaskError, match=r"expected labels of .* \(NEG, POS or 0 to 1\), got 'may"):
        load_task(f"hf:{model}?data={data}")


def test_no_model_or_no_data_is_one_line(folders, tmp_path):
    model, data = folders["causal-lm"]
    with pytest.raises(TaskError, match="expected a folder or a hub's name of a transformers"):
        load_task(f"hf:{tmp_path / 'none'}?data={data}")
    with pytest.raises(TaskError, match="expected data for hf:.*, got none; --data FILE"):
        load_task(f"hf:{model}")
    assert WORDS
