"""Scores against the definitions, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch.nn import functional as F

from attnpass.tuner.tasks import scores
from attnpass.tuner.tasks.description import KINDS

X = torch.randn(5, 7, 11, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 11, (5, 7), generator=torch.Generator().manual_seed(1))


def test_every_kind_has_scores():
    assert list(scores.METRICS) == list(KINDS[:3]) + ["masked-lm", "causal-lm", "embedding"]


def test_accuracy_of_items_and_of_tokens():
    output = SimpleNamespace(logits=X[:, 0])
    assert scores.accuracy(output, X[:, 0].argmax(-1)).tolist() == [1.0] * 5
    target = X.argmax(-1)
    target[0, :3], target[0, 3] = scores.IGNORED, (target[0, 3] + 1) % 11
    assert scores.token_accuracy(X, target).tolist() == [0.75, 1, 1, 1, 1]


def test_likelihoods():
    p = X.log_softmax(-1)
    want = [sum(p[i, t, Y[i, t + 1]] for t in range(6)) / 6 for i in range(5)]
    torch.testing.assert_close(scores.next_likelihood(X, Y), torch.stack(want))
    target = Y.clone()
    target[:, 2:] = scores.IGNORED
    want = [(p[i, 0, Y[i, 0]] + p[i, 1, Y[i, 1]]) / 2 for i in range(5)]
    torch.testing.assert_close(scores.masked_likelihood(X, target), torch.stack(want))
    right = (X[:, :-1].argmax(-1) == Y[:, 1:]).float().mean(1)
    torch.testing.assert_close(scores.next_accuracy(X, Y), right)


def test_retrieval():
    queries = F.normalize(torch.eye(4, 8), dim=-1)
    found = queries.clone()
    found[0] = 0.1 * queries[0]
    found[1] = queries[1] + 0.5 * queries[0]  # nearer to query 0 than its own
    assert scores.ranks(found, queries).tolist() == [2, 1, 1, 1]
    assert scores.reciprocal_rank(found, queries).tolist() == [0.5, 1, 1, 1]
    assert scores.recall(found, queries).tolist() == [0, 1, 1, 1]
    assert scores.cosine(found[:1], queries[:1]).item() == 1
