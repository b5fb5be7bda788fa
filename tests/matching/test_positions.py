"""Operators on tensors of positions, each compared with torch at every position."""

from __future__ import annotations

import itertools

import pytest
import sympy
import torch
from tracing import result, traced

from attnpass.matching.cells import Unread, position
from attnpass.matching.inequalities import TooLarge
from attnpass.matching.positions import Positions

N = 5


def at(cells, index):
    """The value of cells at an index."""
    swap = {position(i + 1): x for i, x in enumerate(reversed(index))}
    found = []
    for where, x in cells.cases:
        if any(
            all(sum(c * term.subs(swap) for term, c in terms) + k >= 0 for terms, k in case)
            for case in where
        ):
            found.append(float(x.subs(swap)) if isinstance(x, sympy.Basic) else float(x))
    (only,) = found
    return only


def rows():
    return torch.arange(N)[:, None]


def plane():
    return rows() - torch.arange(N)


READ = {
    "arange of three": lambda: torch.arange(3, 3 + 2 * N, 2),
    "expand": lambda: rows().expand(N, 4),
    "sum": lambda: rows() + torch.arange(N) + 2,
    "difference with a factor": lambda: torch.sub(rows(), torch.arange(N), alpha=3),
    "number minus": lambda: 7 - torch.arange(N),
    "product": lambda: torch.arange(N) * -3,
    "negative": lambda: -torch.arange(N),
    "distance": lambda: plane().abs(),
    "comparison": lambda: plane() != 2,
    "logic": lambda: torch.logical_or(plane() > 2, plane() < -1) & ~(rows() == 4),
    "tril": lambda: torch.ones(N, N).tril(-1),
    "triu": lambda: torch.full((N, N), -torch.inf).triu(2),
    "where": lambda: torch.where(plane() > 0, rows(), 9),
    "masked_fill": lambda: torch.zeros(N, N).masked_fill(plane() < 0, -torch.inf),
    "cast": lambda: (plane() > 1).float() * 2,
    "transpose": lambda: (rows() * 10 + torch.arange(N)).transpose(0, 1),
    "permute": lambda: (rows() * 10 + torch.arange(N))[None].permute(2, 0, 1),
    "view": lambda: plane().view(1, N, 1, N),
    "squeeze": lambda: plane()[None].squeeze(0),
    "slice": lambda: (rows() * 10 + torch.arange(N))[1:4, 2:],
    "slice of one": lambda: (rows() * 10 + torch.arange(N))[1:2],
    "select": lambda: (rows() * 10 + torch.arange(N))[3],
    "select a column": lambda: (rows() * 10 + torch.arange(N))[:, 3],
    "clone": lambda: plane().clone().contiguous(),
    "like": lambda: torch.ones_like(plane()) + torch.zeros_like(plane(), dtype=torch.float32),
    "held": lambda: plane() * torch.tensor(3),
}


@pytest.mark.parametrize("name", READ)
def test_an_operator_is_read_as_torch_computes_it(name):
    gm = traced(lambda x: (READ[name](), x + 1), torch.ones(1))
    cells, wanted = Positions().read(result(gm)[0]), READ[name]()
    assert cells.shape == tuple(wanted.shape) and cells.dtype == wanted.dtype
    for index in itertools.product(*map(range, wanted.shape)):
        assert at(cells, index) == float(wanted[index]), index


UNREAD = {
    "other operator": lambda x: torch.arange(N).cumsum(0),
    "argument of the graph": lambda x: x > 0,
    "step": lambda x: torch.arange(N)[::2],
    "start from the end": lambda x: torch.arange(N)[-2:],
    "axes joined": lambda x: plane().view(N * N),
    "rounded": lambda x: torch.arange(N) * 0.5,
    "half": lambda x: torch.arange(N).half(),
    "half steps": lambda x: torch.arange(0, 3, 0.5),
    "bits": lambda x: plane() & 1,
    "sum of bools": lambda x: (plane() > 1) + (plane() < -1),
    "tensor of many": lambda x: torch.tensor([1, 2, 3]) + 1,
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_not_understood_is_refused(name):
    gm = traced(UNREAD[name], torch.ones(N))
    with pytest.raises((Unread, TooLarge)):
        Positions().read(result(gm))
