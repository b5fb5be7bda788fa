"""Folders with small random models of transformers and timm, and tables to judge them by."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from shim import torchvision

WORDS = [
    *("good", "bad", "film", "plot", "actor", "scene", "slow", "fast", "long", "short"),
    *("bright", "dark", "music", "story", "hero", "villain", "loved", "hated", "enjoyed"),
    *("missed", "ending", "begin", "middle", "laugh", "cry", "city", "river", "house", "night"),
]


def tokenizer(folder: Path, *, causal: bool = False) -> Any:
    """A tokenizer of whole words, saved in a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if not causal:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    given = {f"{k}_token": v for k, v in names.items()} | {"eos_token": "[SEP]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=64, **given)
    fast.save_pretrained(folder)
    return fast


def text_model(folder: Path, kind: str, **given: Any) -> Path:
    """A small random model of text of a kind, with its tokenizer; returns the folder."""
    torchvision()
    import transformers

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 5 + len(WORDS),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    if kind == "causal-lm":
        config: Any = transformers.LlamaConfig(**sizes, num_key_value_heads=1, **given)
        model: Any = transformers.LlamaForCausalLM(config)
    else:
        config = transformers.BertConfig(**sizes, **given)
        name = {
            "text-classification": "BertForSequenceClassification",
            "token-classification": "BertForTokenClassification",
            "masked-lm": "BertForMaskedLM",
            "embedding": "BertModel",
        }[kind]
        model = getattr(transformers, name)(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(4)  # attention that looks somewhere
    model.save_pretrained(folder)
    tokenizer(folder, causal=kind == "causal-lm")
    return folder


def sentences(count: int, seed: int = 0, words: int = 12) -> list[str]:
    """Random texts, no two alike."""
    chosen = random.Random(seed)
    return list({" ".join(chosen.choices(WORDS, k=words)): None for _ in range(2 * count)})[:count]


def json_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A file of JSON lines; returns its path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pictures(folder: Path, classes: list[str], each: int, side: int = 32) -> Path:
    """A folder of random images by class; returns it."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(each):
            x = torch.randint(0, 256, (side, side, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(x.numpy()).save(folder / name / f"{i}.png")
    return folder
