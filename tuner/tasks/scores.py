"""Scores per item of the usual kinds of models; higher is better.

Shapes: N items, C classes, T tokens, V words, D width. ``output`` is what a model returned: a
tensor, or an object of transformers with ``logits``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnpass.tuner.measure import first_tensor

IGNORED = -100
"""Target of a token that is not judged."""


def logits(output: Any) -> Tensor:
    """The logits among a model's outputs: by their name, else the first tensor."""
    found = getattr(output, "logits", None)
    return found if isinstance(found, Tensor) else first_tensor(output)


def accuracy(output: Any, target: Tensor) -> Tensor:
    """1.0 where the largest of ``[N, C]`` is the class ``[N]``, else 0.0."""
    return (logits(output).argmax(-1) == target).float()


def token_accuracy(output: Any, target: Tensor) -> Tensor:
    """Per item the share of judged tokens ``[N, T]`` whose largest of ``[N, T, C]`` is theirs."""
    judged = target != IGNORED
    right = (logits(output).argmax(-1) == target) & judged
    return right.sum(1) / judged.sum(1).clamp_min(1)


def masked_likelihood(output: Any, target: Tensor) -> Tensor:
    """Per item the mean log-likelihood in nats of its judged tokens ``[N, T]``."""
    return torch.stack([_likelihood(x, y) for x, y in zip(logits(output), target, strict=True)])


def next_likelihood(output: Any, target: Tensor) -> Tensor:
    """Per item the mean log-likelihood in nats of every token of ``[N, T]`` but the first.

    A drop of 0.01 is 1 % of perplexity.
    """
    found = logits(output)
    return torch.stack([_likelihood(x[:-1], y[1:]) for x, y in zip(found, target, strict=True)])


def next_accuracy(output: Any, target: Tensor) -> Tensor:
    """Per item the share of tokens of ``[N, T]``, the first left out, that are foreseen."""
    found = logits(output)
    return torch.stack([_found(x[:-1], y[1:]) for x, y in zip(found, target, strict=True)])


def _likelihood(x: Tensor, y: Tensor) -> Tensor:
    """Mean log-likelihood of the judged tokens of one item; item by item, for words are many."""
    total = F.cross_entropy(x.float(), y, ignore_index=IGNORED, reduction="sum")
    return -total / (y != IGNORED).sum().clamp_min(1)


def _found(x: Tensor, y: Tensor) -> Tensor:
    judged = y != IGNORED
    return ((x.argmax(-1) == y) & judged).sum() / judged.sum().clamp_min(1)


def ranks(output: Any, queries: Tensor) -> Tensor:
    """Ranks, from 1, at which its own query ``[N, D]`` finds each item ``[N, D]`` among all."""
    found = first_tensor(output).to(queries)
    own = (queries * found).sum(1)
    counts = [(part @ found.T > own[i, None]).sum(1) for part, i in _parts(queries)]
    return torch.cat(counts) + 1


def _parts(x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Rows in parts, with their numbers: all similarities at once may be too many."""
    return list(zip(x.split(1024), torch.arange(len(x), device=x.device).split(1024), strict=True))


def reciprocal_rank(output: Any, queries: Tensor) -> Tensor:
    """One over the rank at which its own query finds an item; the mean is MRR."""
    return 1.0 / ranks(output, queries)


def recall(output: Any, queries: Tensor) -> Tensor:
    """1.0 where its own query finds an item first among all, else 0.0."""
    return (ranks(output, queries) == 1).float()


def cosine(output: Any, original: Tensor) -> Tensor:
    """Cosine of an item's embedding ``[N, D]`` and that of the original model."""
    return F.cosine_similarity(first_tensor(output).to(original), original)


METRICS: dict[str, dict[str, Callable[[Any, Tensor], Tensor]]] = {
    "text-classification": {"accuracy": accuracy},
    "image-classification": {"accuracy": accuracy},
    "token-classification": {"accuracy": token_accuracy},
    "masked-lm": {"log-likelihood": masked_likelihood, "accuracy": token_accuracy},
    "causal-lm": {"log-likelihood": next_likelihood, "accuracy": next_accuracy},
    "embedding": {"MRR": reciprocal_rank, "recall@1": recall, "cosine": cosine},
}
"""By kind the scores by name, the usual one first."""

POOLED = ("MRR", "recall@1")
"""Scores that need all items at once."""
