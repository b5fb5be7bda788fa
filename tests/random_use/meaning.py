"""What a random model is: sizes, masks, wiring; and which positions its mask keeps.

Positions are counted one by one in Python, with nothing of the product and nothing of the models.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MASKS = ("none", "causal", "window", "sink", "chunks", "prefix", "band")

STYLES = ("fill", "low", "where", "add", "sdpa", "sdpa-float", "is-causal")
"""How a mask is applied. ``low`` fills with -1e9, ``is-causal`` leaves it to the operator."""


@dataclass(frozen=True)
class Spec:
    """A model.

    ``number`` is the constant of its mask, ``padding`` the fill of a padding mask; ``cached``: it
    takes the keys and values of earlier tokens; ``branch``: beyond ``number`` tokens it takes
    another path.
    """

    width: int
    heads: int
    kv_heads: int
    layers: int
    mask: str
    number: int
    style: str
    padding: str
    alibi: bool
    softcap: bool
    kind: str
    wiring: str
    shared: bool
    breaks: bool
    norm: str
    counter: bool
    check: bool
    cached: bool
    branch: bool

    @property
    def calls(self) -> list[str]:
        """The name of every attention of a forward pass, in order, as sites are named."""
        names: list[str] = []
        for i in range(self.layers):
            at = 0 if self.wiring != "plain" and (self.breaks or self.wiring == "loop") else i
            turn = [f"blocks.{at}.attn"] * (2 if self.kind == "pair" else 1)
            if self.breaks and at == 0:
                names += [x if n == 0 else f"{x}#2" for n, x in enumerate(turn)]
                continue
            for x in turn:
                n = 1 + sum(y.partition("#")[0] == x for y in names)
                names.append(x if n == 1 else f"{x}#{n}")
        return names


def draw(pick: random.Random) -> Spec:
    """A random model that makes sense."""
    heads = pick.choice((2, 4))
    given: dict[str, Any] = {
        "width": pick.choice((16, 32)),
        "heads": heads,
        "kv_heads": pick.choice((heads, heads, 1, 2)),
        "layers": pick.choice((1, 2, 2, 2, 2, 3)),
        "mask": pick.choice(MASKS),
        "number": pick.choice((2, 3, 6)),
        "style": pick.choice(STYLES),
        "padding": pick.choice(("none", "none", "fill", "low", "add")),
        "alibi": pick.random() < 0.15,
        "softcap": pick.random() < 0.1,
        "kind": pick.choice(("self", "self", "self", "pair", "latents")),
        "wiring": pick.choice(("plain", "plain", "plain", "tied", "loop")),
        "shared": pick.random() < 0.15,
        "breaks": pick.random() < 0.25,
        "norm": pick.choice(("layer", "layer", "batch")),
        "counter": pick.random() < 0.3,
        "check": pick.random() < 0.3,
        "cached": pick.random() < 0.25,
        "branch": pick.random() < 0.35,
    }
    return settle(given)


def settle(given: dict[str, Any]) -> Spec:
    """``given`` with what does not go together put right."""
    if given["style"] == "is-causal":
        given["mask"] = "causal"
        given |= {"alibi": False, "padding": "none"}
    if given["kind"] == "latents":  # queries are no positions of the tokens
        given |= {"mask": "none", "alibi": False}
        if given["style"] == "is-causal":
            given["style"] = "sdpa"
    if given["mask"] not in ("none", "causal", "prefix"):
        given["padding"] = "none"  # every row keeps a key: the first one
    if given["style"].startswith(("sdpa", "is")):
        given["softcap"] = False
    if given["cached"]:
        given |= {"kind": "self", "wiring": "plain", "breaks": False, "norm": "layer"}
        given["style"] = "sdpa" if given["style"] == "is-causal" else given["style"]
    if given["layers"] == 1:
        given["wiring"] = "plain"
    if given["wiring"] != "plain":
        given["shared"] = False
    return Spec(**given)


def keeps(mask: str, number: int, row: int, column: int) -> bool:
    """Whether a mask keeps one position."""
    if mask == "none":
        return True
    if mask == "causal":
        return column <= row
    if mask == "window":
        return column <= row and row - column < number
    if mask == "sink":
        return column <= row and (row - column < number or column == 0)
    if mask == "chunks":
        return column <= row and row // number == column // number
    if mask == "prefix":
        return column <= row or column < number
    assert mask == "band"
    return abs(row - column) < number


def kept(spec: Spec, rows: int, columns: int) -> Tensor:
    """The kept positions as bool ``[rows, columns]``; the rows are the last of the tokens."""
    first = columns - rows if spec.cached else 0
    table = [
        [keeps(spec.mask, spec.number, first + i, j) for j in range(columns)] for i in range(rows)
    ]
    return torch.tensor(table, dtype=torch.bool).view(rows, columns)


def slopes(heads: int) -> Tensor:
    """ALiBi's slope of every head, ``[heads, 1, 1]``."""
    return torch.tensor([2.0 ** -(1 + i) for i in range(heads)]).view(-1, 1, 1)
