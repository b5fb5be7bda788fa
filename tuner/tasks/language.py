"""Tasks of text: a model and a tokenizer that transformers loads, and a table of texts.

Shapes: N items, T tokens, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnpass.errors import MissingDependencyError, TaskError
from attnpass.task import Task
from attnpass.text import shown
from attnpass.tuner.tasks import scores
from attnpass.tuner.tasks.description import Description
from attnpass.tuner.tasks.parts import parted
from attnpass.tuner.tasks.rows import Row, column, read
from attnpass.tuner.tasks.sentence_folder import SentenceFolder

log = logging.getLogger("attnpass.tasks")

HEADS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "masked-lm",
    "ForPreTraining": "masked-lm",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForImageClassification": "image-classification",
}
"""Endings of an architecture's name, and the kind of its task; of all others embedding."""

AUTO = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "masked-lm": "AutoModelForMaskedLM",
    "causal-lm": "AutoModelForCausalLM",
    "embedding": "AutoModel",
}
TEXTS = ("text", "sentence", "review", "content", "document", "body", "title")
LABELS = ("label", "labels", "class", "category", "target")
PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
)
"""Usual columns of two texts that are classified together."""
QUERIES = (
    ("query", "text"),
    ("query", "positive"),
    ("query", "document"),
    ("anchor", "positive"),
    ("question", "answer"),
    ("question", "context"),
    ("sentence1", "sentence2"),
)
"""Usual columns of a query and of the text that it should find."""
WORDS, TAGS = ("tokens", "words"), ("ner_tags", "tags", "pos_tags", "labels")

SERVED, LESSON = 16, 8
"""Items of a call as served, where nothing else is said, and of a batch to learn from."""
CALIBRATION = 128
"""Items to calibrate on."""
LONGEST, STEP = 512, 32
"""Tokens of a window of text, at most; and what lengths are rounded up to a multiple of."""
LOGIT_BYTES = 2**28
"""Bytes that the logits of one batch to judge by may take."""
MASKED = 0.15
"""Share of the tokens that a masked language model has to find."""


class Encoded(NamedTuple):
    """Tokenised items: a call's named arguments ``[N, T]``, and what they are judged by."""

    inputs: dict[str, Tensor]
    target: Tensor


def configured(description: Description) -> Any:
    """The model's configuration.

    Raises:
        MissingDependencyError: transformers is not installed.
        TaskError: there is no such model.
    """
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise MissingDependencyError(
            f"{description.source}: needs transformers, which is not installed;"
            " pip install 'attnpass[hf]'"
        ) from error
    try:
        return AutoConfig.from_pretrained(_folder(description))
    except (OSError, ValueError) as error:
        raise TaskError(
            f"expected a folder or a hub's name of a transformers model, got"
            f" {shown(description.model)}: {error}"
        ) from error


def kind_of(config: Any) -> str:
    """The kind of task that a model's architecture is for."""
    name = next(iter(config.architectures or ()), "")
    return next((kind for ending, kind in HEADS.items() if name.endswith(ending)), "embedding")


def make(description: Description, config: Any) -> tuple[Task, Description]:
    """The task of a model of text, and its description with everything found out.

    Raises:
        TaskError: data, columns, labels or lengths that do not fit.
        MissingDependencyError: a package that is needed is not installed.
    """
    from transformers import AutoTokenizer

    kind = description.kind
    judged, learnt = read(description.data)
    if description.learn:
        learnt = read(description.learn)[0]
    tokenizer = AutoTokenizer.from_pretrained(_folder(description))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = _model(description, config)
    reader = {
        "text-classification": _Classified,
        "token-classification": _Tagged,
        "masked-lm": _Masked,
        "causal-lm": _Next,
        "embedding": _Embedded,
    }[kind](description, tokenizer, config, judged, model)
    others, mine = reader.parts(judged, learnt)
    log.info("tokenising")
    length = description.length or reader.usual_length([*others[:500], *mine[:500]])
    reader.length = min(length, reader.longest)
    if description.length > reader.longest:
        raise TaskError(
            f"expected a length up to {reader.longest} of {description.model}, got"
            f" {description.length}"
        )
    learn, judge = reader.encode(others), reader.encode(mine)
    batch = description.batch or SERVED
    metric = description.metric or reader.metric
    size = reader.judged_at_once(batch)
    device = description.device or "cpu"
    found = description.with_options(
        {
            "kind": kind,
            "metric": metric,
            "batch": batch,
            "length": reader.length,
            "text": reader.text,
            "label": reader.label,
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
            "device": device,
        }
    )
    inputs = {k: v.to(device) for k, v in judge.inputs.items()}
    validation = list(
        zip(_batches(inputs, size), judge.target.to(device).split(size), strict=True)
    )
    made = Task(
        name=f"{description.source}:{Path(description.model).name}",
        model=model.to(device),
        example={k: v[:batch] for k, v in inputs.items()},
        calibration=_batches({k: v[:CALIBRATION].to(device) for k, v in learn.inputs.items()}, 32),
        validation=validation,
        score=scores.METRICS[kind][metric],
        metric=metric,
        recovery=_lessons({k: v.to(device) for k, v in learn.inputs.items()}),
        outputs="features" if kind == "embedding" else "logits",
        pooled=metric in scores.POOLED,
    )
    return made, found


def _model(description: Description, config: Any) -> nn.Module:
    """The model in evaluation mode, without a cache of keys and values in its outputs."""
    import transformers

    auto = getattr(transformers, AUTO[description.kind])
    kind = getattr(torch, description.dtype) if description.dtype else "auto"
    try:
        model: nn.Module = auto.from_pretrained(_folder(description), dtype=kind)
    except (OSError, ValueError, RuntimeError) as error:
        raise TaskError(
            f"expected weights of {description.model} for {description.kind}, got: {error}"
        ) from error
    if hasattr(config, "use_cache"):
        model.config.use_cache = False  # type: ignore[union-attr]
    if description.kind == "embedding":
        model = _pooled(model, description)
    return model.eval()


class _Reader:
    """What one kind of task reads from a table.

    Attributes:
        text, label: the columns, as a description names them. length: tokens of an item.
        longest: tokens that the model takes at most. metric: the usual one.
    """

    text = label = ""

    def __init__(
        self,
        description: Description,
        tokenizer: Any,
        config: Any,
        rows: Sequence[Row],
        model: nn.Module,
    ) -> None:
        self.description, self.tokenizer, self.config = description, tokenizer, config
        self.model, self.length = model, 0
        self.longest = _longest(tokenizer, config)
        self.metric = next(iter(scores.METRICS[description.kind]))
        self.columns(rows)

    def columns(self, rows: Sequence[Row]) -> None:
        """Find the columns; raises TaskError where one is missing."""
        raise NotImplementedError

    def parts(
        self, judged: Sequence[Row], learnt: Sequence[Row] | None
    ) -> tuple[list[Row], list[Row]]:
        """Rows to learn from, and rows to judge by."""
        return parted(judged, learnt, self.description.items, self.content)

    def content(self, row: Row) -> Any:
        """What makes two rows the same."""
        return tuple(str(row[c]) for c in self.text.split(","))

    def texts(self, rows: Sequence[Row]) -> list[list[str]]:
        """The texts of every column that is read."""
        return [[str(row[c]) for row in rows] for c in self.text.split(",")]

    def tokens(self, *texts: Sequence[Any], length: int, **more: Any) -> Any:
        """Texts as tokens, cut and padded to a length."""
        return self.tokenizer(
            *(list(x) for x in texts),
            truncation=True,
            padding="max_length",
            max_length=length,
            return_tensors="pt",
            **more,
        )

    def usual_length(self, rows: Sequence[Row]) -> int:
        """Tokens that 95 % of the items keep within, rounded up."""
        counts = self.lengths(self.tokenizer(*self.texts(rows), truncation=False, verbose=False))
        return _rounded(counts)

    @staticmethod
    def lengths(found: Mapping[str, Any]) -> list[int]:
        """Numbers of tokens."""
        return [len(x) for x in found["input_ids"]]

    def encode(self, rows: Sequence[Row]) -> Encoded:
        """The rows as a model's arguments, with what they are judged by."""
        raise NotImplementedError

    def judged_at_once(self, batch: int) -> int:
        """Items of a batch to judge by."""
        return max(batch, 32)

    def classes(self, values: Sequence[Any]) -> list[int]:
        """Labels as the model's numbers of them.

        Raises:
            TaskError: one that the model does not know.
        """
        count = int(self.config.num_labels)
        names = {str(k).lower(): int(v) for k, v in (self.config.label2id or {}).items()}
        found = []
        for value in values:
            text = str(value).strip()
            if text.lower() in names:
                found.append(names[text.lower()])
            elif text.lstrip("-").isdigit() and (int(text) in range(count) or int(text) < 0):
                found.append(max(int(text), scores.IGNORED) if int(text) >= 0 else scores.IGNORED)
            else:
                known = ", ".join(list(map(str, self.config.label2id or ()))[:8])
                raise TaskError(
                    f"expected labels of {self.description.model} ({known} or 0 to {count - 1}),"
                    f" got {shown(value)} in column {self.label}"
                )
        return found


class _Classified(_Reader):
    """A class per text, or per pair of texts."""

    def columns(self, rows: Sequence[Row]) -> None:
        """A column or two of text, and one of labels."""
        self.label = column(rows, self.description.label, LABELS, "label")
        self.text = _columns(rows, self.description.text, PAIRS) or column(rows, "", TEXTS, "text")

    def encode(self, rows: Sequence[Row]) -> Encoded:
        """Tokens, and a class per item."""
        found = self.tokens(*self.texts(rows), length=self.length)
        return Encoded(dict(found), torch.tensor(self.classes([r[self.label] for r in rows])))


class _Tagged(_Reader):
    """A class per word."""

    def columns(self, rows: Sequence[Row]) -> None:
        """A column of lists of words, and one of lists of tags."""
        self.text = column(rows, self.description.text, WORDS, "text")
        self.label = column(rows, self.description.label, TAGS, "label")
        if not isinstance(rows[0][self.text], (list, tuple)):
            raise TaskError(f"expected lists of words in column {self.text}, got text")

    def usual_length(self, rows: Sequence[Row]) -> int:
        """As for texts, of lists of words."""
        words = [list(row[self.text]) for row in rows]
        return _rounded(self.lengths(self.tokenizer(words, is_split_into_words=True)))

    def encode(self, rows: Sequence[Row]) -> Encoded:
        """Tokens, and per token the class of the word that it begins."""
        words = [list(row[self.text]) for row in rows]
        found = self.tokens(words, length=self.length, is_split_into_words=True)
        target = torch.full_like(found["input_ids"], scores.IGNORED)
        for i, row in enumerate(rows):
            tags, before = self.classes(row[self.label]), None
            if len(tags) != len(words[i]):
                raise TaskError(f"expected a tag per word, got {len(tags)} for {len(words[i])}")
            for at, word in enumerate(found.word_ids(i)):
                if word is not None and word != before:
                    target[i, at] = tags[word]
                before = word
        return Encoded(dict(found), target)


class _Windows(_Reader):
    """Running text, in windows of one length."""

    def columns(self, rows: Sequence[Row]) -> None:
        """A column of text."""
        self.text = column(rows, self.description.text, TEXTS, "text")

    def usual_length(self, rows: Sequence[Row]) -> int:
        """As many as are usual."""
        return LONGEST

    def parts(
        self, judged: Sequence[Row], learnt: Sequence[Row] | None
    ) -> tuple[list[Row], list[Row]]:
        """Windows instead of rows: texts may be few and long."""
        self.length = min(self.description.length or LONGEST, self.longest)
        mine = self._windows(judged)
        others = None if learnt is None else self._windows(learnt)
        return parted(mine, others, self.description.items, lambda row: tuple(row["ids"]))

    def _windows(self, rows: Sequence[Row]) -> list[Row]:
        ids: list[int] = []
        special = self.tokenizer.eos_token_id
        for text in self.texts(rows)[0]:
            ids += self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            ids += [] if special is None else [special]
        whole = len(ids) - len(ids) % self.length
        return [{"ids": ids[i : i + self.length]} for i in range(0, whole, self.length)]

    def judged_at_once(self, batch: int) -> int:
        """As many as have room for their logits."""
        words = int(getattr(self.config, "vocab_size", 0)) or len(self.tokenizer)
        return max(1, min(32, LOGIT_BYTES // (4 * words * self.length)))


class _Next(_Windows):
    """The next token, everywhere."""

    def encode(self, rows: Sequence[Row]) -> Encoded:
        """Tokens, which are judged by themselves."""
        ids = torch.tensor([row["ids"] for row in rows])
        return Encoded({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids)


class _Masked(_Windows):
    """Tokens that are masked."""

    def encode(self, rows: Sequence[Row]) -> Encoded:
        """Tokens, a share of them masked, the same in every process."""
        if self.tokenizer.mask_token_id is None:
            raise TaskError(f"expected a tokenizer with a mask in {self.description.model}")
        ids = torch.tensor([row["ids"] for row in rows])
        chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < MASKED
        chosen[:, 0] = True
        shown_ids = torch.where(chosen, self.tokenizer.mask_token_id, ids)
        target = torch.where(chosen, ids, scores.IGNORED)
        return Encoded({"input_ids": shown_ids, "attention_mask": torch.ones_like(ids)}, target)


class _Embedded(_Reader):
    """Texts, each to be found by its query; without queries, to be as the original's."""

    def columns(self, rows: Sequence[Row]) -> None:
        """A column of queries and one of texts, or one of texts."""
        found = _columns(rows, self.description.text, QUERIES)
        self.text = found or column(rows, "", TEXTS, "text")
        self.metric = "MRR" if "," in self.text else "cosine"
        if (self.description.metric or self.metric) in scores.POOLED and "," not in self.text:
            raise TaskError(
                f"expected two columns, of queries and texts, for {self.description.metric};"
                f" got {self.text}"
            )

    def usual_length(self, rows: Sequence[Row]) -> int:
        """Of the texts alone."""
        texts = self.texts(rows)[-1]
        return _rounded(self.lengths(self.tokenizer(texts, truncation=False, verbose=False)))

    def encode(self, rows: Sequence[Row]) -> Encoded:
        """Tokens, and per item the original model's embedding of its query, or of itself."""
        *queries, texts = self.texts(rows)
        found = dict(self.tokens(texts, length=self.length))
        asked = found
        if queries:
            counts = self.lengths(self.tokenizer(queries[0], truncation=False, verbose=False))
            asked = self.tokens(queries[0], length=min(_rounded(counts), self.longest))
        with torch.no_grad():
            target = [self.model(**batch) for batch in _batches(dict(asked), 64)]
        return Encoded(found, torch.cat(target).float())


def _columns(rows: Sequence[Row], asked: str, usual: Sequence[tuple[str, str]]) -> str:
    """Two columns, or the one asked for, as a description names them; empty where none is."""
    if asked:
        return ",".join(column(rows, x.strip(), (), "text") for x in asked.split(","))
    there = {str(x).lower(): str(x) for x in rows[0]}
    pair = next((p for p in usual if all(x in there for x in p)), None)
    return ",".join(there[x] for x in pair) if pair else ""


def _longest(tokenizer: Any, config: Any) -> int:
    """Tokens that a model takes at most; of one without such a limit, the usual."""
    told = [getattr(config, "max_position_embeddings", None), getattr(config, "n_positions", None)]
    told += [tokenizer.model_max_length if tokenizer.model_max_length < 10**6 else None]
    known = [int(x) for x in told if x]
    if not known:
        return 2**20
    # models of this family begin to count behind the number of their padding
    offset = config.pad_token_id + 1 if "roberta" in str(config.model_type) else 0
    return min(known) if min(known) < (known[0] or 0) else min(known) - offset


def _rounded(counts: Sequence[int]) -> int:
    longest = sorted(counts)[int(0.95 * (len(counts) - 1))]
    return -(-longest // STEP) * STEP


def _batches(inputs: Mapping[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    """Named arguments ``[N, ...]`` in batches."""
    columns = zip(*(x.split(size) for x in inputs.values()), strict=True)
    return [dict(zip(inputs, row, strict=True)) for row in columns]


def _lessons(inputs: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Batches to learn from: items of like length, without the padding that all share."""
    mask = inputs.get("attention_mask")
    if mask is None or bool(mask.all()) or not bool(mask[:, 0].all()):
        return _batches(inputs, LESSON)
    made = []
    for rows in mask.sum(1).argsort(stable=True).split(LESSON):
        longest = int(mask[rows].sum(1).max())
        cut = min(-(-longest // STEP) * STEP, mask.shape[1])
        made.append({k: v[rows, :cut] for k, v in inputs.items()})
    return made


class Pooled(nn.Module):
    """Mixed into a model of transformers: a call returns unit embeddings ``[N, D]``."""

    attnpass_pooling: tuple[str, bool]

    def forward(self, **inputs: Tensor) -> Tensor:
        """The embeddings of ``input_ids [N, T]`` where ``attention_mask [N, T]`` is not 0."""
        how, unit = self.attnpass_pooling
        hidden = super().forward(**inputs)[0]  # type: ignore[misc]
        mask = inputs["attention_mask"]
        if how == "cls":
            found = hidden[:, 0]
        elif how == "lasttoken":
            last = mask.sum(1) - 1
            found = hidden[torch.arange(len(hidden), device=hidden.device), last]
        else:
            weight = mask[..., None].to(hidden.dtype)
            found = (hidden * weight).sum(1) / weight.sum(1).clamp_min(1)
        return F.normalize(found, dim=-1) if unit else found


def _pooled(model: nn.Module, description: Description) -> nn.Module:
    """The same model, whose calls return embeddings; its weights keep their paths."""
    st = description.source == "st"
    how = SentenceFolder.of(description.model).pooling() if st else ("mean", True)
    model.__class__ = type(f"Pooled{type(model).__name__}", (Pooled, type(model)), {})
    model.attnpass_pooling = how  # type: ignore[assignment]
    return model


def _folder(description: Description) -> str:
    """Where transformers finds a model: in a folder of sentence-transformers, its first module."""
    if description.source != "st":
        return description.model
    return SentenceFolder.of(description.model).transformer
