"""A pretrained model as its package ships it: `attnpass tune examples/receptors.py:task`.

SCEPTR (150,000 parameters, from the package sceptr, `make receptors` installs it) embeds T cell
receptors: 65 tokens with padding, 3 layers of width 64, in batches of 512. Exact softmax by the
kernels is much faster here and loses nothing; beyond it there is little to gain, and the command
says so (docs/measured.md). The receptors are made of the human germline genes that the package
tidytcells holds, joined by random residues. A receptor has to be found among all by its beta
chain alone, some residues of which are others.

Shapes: B receptors, T tokens, 4 numbers per token.
"""

from __future__ import annotations

import random
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from attnpass import Task
from attnpass.errors import MissingDependencyError

BATCH = 512
"""Receptors of a batch, as the package has it."""
JUDGED, LEARN = 5 * BATCH, 4 * BATCH
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
ADDED, CHANGED = (2, 6), 3
"""Random residues between the genes (at least, at most); those that are changed to ask."""


class Receptors(nn.Module):
    """The embedding ``[B, 64]`` of unit length of receptors ``[B, T, 4]``."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, tokens: Tensor) -> Tensor:
        """What the package itself does with a batch.

        The package compares tokens with an ``IntEnum``. Under ``torch.compile`` (2.13, with any
        backend) that is False for a tensor that was computed, so that the results would be others:
        the embedding is not compiled, and a number stands for the padding.
        """
        bert: Any = self.bert
        embedded = torch.compiler.disable(bert._embed)(tokens)
        delegate, padding = bert._vector_representation_delegate, tokens[:, :, 0] == 0
        found: Tensor = delegate.get_vector_representations_of(embedded, padding)
        return found


def germline() -> dict[str, dict[str, str]]:
    """The V genes of both chains and the ends of their J genes, as the data of tidytcells say."""
    import tidytcells

    found: dict[str, dict[str, str]] = {"TRAV": {}, "TRBV": {}, "TRAJ": {}, "TRBJ": {}}
    for name in sorted(tidytcells.tr.query("homosapiens", precision="allele", functionality="F")):
        kind = name[:4]
        if kind not in found or "DV" in name:
            continue
        parts = tidytcells.tr.get_aa_sequence(name)
        if kind[-1] == "V" and parts.get("CDR1-IMGT") and parts.get("CDR2-IMGT"):
            found[kind][name] = "C" + parts["V-REGION"].rpartition("C")[2]
        elif kind[-1] == "J" and "FG" in parts.get("J-REGION", ""):
            # what is before the F of the motif F G x G, with it
            found[kind][name] = parts["J-REGION"].partition("FG")[0][-8:] + "F"
    return found


def receptors(count: int, seed: int) -> list[dict[str, str]]:
    """Random receptors, by the columns of the package."""
    draw, genes, out = random.Random(seed), germline(), []
    for _ in range(count):
        row = {}
        for chain in "AB":
            gene, start = draw.choice(list(genes[f"TR{chain}V"].items()))
            end = draw.choice(list(genes[f"TR{chain}J"].values()))
            added = "".join(draw.choices(RESIDUES, k=draw.randint(*ADDED)))
            row |= {f"TR{chain}V": gene, f"CDR3{chain}": start[:5] + added + end}
        out.append(row)
    return out


def changed(rows: list[dict[str, str]], seed: int) -> list[dict[str, str]]:
    """The beta chains of receptors, each with some residues inside drawn anew."""
    draw, out = random.Random(seed), []
    for row in rows:
        residues = list(row["CDR3B"])
        for i in draw.sample(range(1, len(residues) - 1), CHANGED):
            residues[i] = draw.choice(RESIDUES.replace(residues[i], ""))
        out.append({"TRBV": row["TRBV"], "CDR3B": "".join(residues)})
    return out


def tokens(model: Any, rows: list[dict[str, str]], length: int = 0) -> Tensor:
    """Tokens ``[n, T, 4]``, padded to a ``length`` or to the longest."""
    from libtcrlm import schema

    each = []
    for row in rows:
        tcr = schema.make_tcr_from_components(
            trav_symbol=row.get("TRAV"),
            junction_a_sequence=row.get("CDR3A"),
            trbv_symbol=row["TRBV"],
            junction_b_sequence=row["CDR3B"],
        )
        each.append(model._tokeniser.tokenise(tcr))
    padded = torch.nn.utils.rnn.pad_sequence(each, batch_first=True)
    return nn.functional.pad(padded, (0, 0, 0, max(length - padded.shape[1], 0)))


def reciprocal_rank(outputs: Tensor, asked: Tensor) -> Tensor:
    """Per receptor one over the rank at which its changed chain ``[n, 64]`` finds it."""
    similar = asked @ outputs.T
    return 1.0 / ((similar > similar.diag()[:, None]).sum(1) + 1)


def task() -> Task:
    """The task: a batch of 512 receptors as served.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    if find_spec("sceptr") is None:
        raise MissingDependencyError(
            "the receptors example needs sceptr, got none; make receptors installs it"
        )
    from sceptr import variant

    made = variant.default()
    model = Receptors(made._bert).eval()
    judged = receptors(JUDGED, 0)
    x = tokens(made, judged)
    with torch.no_grad():
        asked = torch.cat([model(part) for part in tokens(made, changed(judged, 1)).split(BATCH)])
    learn = tokens(made, receptors(LEARN, 2), x.shape[1])[:, : x.shape[1]].split(BATCH)
    return Task(
        name="receptors",
        model=model,
        example=(x[:BATCH],),
        calibration=[(part,) for part in learn],
        validation=[((a,), b) for a, b in zip(x.split(128), asked.split(128), strict=True)],
        score=reciprocal_rank,
        metric="MRR",
        outputs="features",
        pooled=True,
        recovery=[(part,) for part in torch.cat(learn).split(64)],
    )
