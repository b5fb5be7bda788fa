"""A sample of the random use of the product; ``make fuzz`` runs thousands of steps and graphs."""

from __future__ import annotations

import random

import pytest
import torch
from random_use import compared, graphs, meaning, models, reference, run
from random_use.mutations import ROOTS, first, undone

SESSIONS = (37, 41, 43)


@pytest.fixture(autouse=True)
def settings():
    """What ``run.quiet`` sets ends with the test."""
    with torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
        yield


@pytest.mark.parametrize("seed", SESSIONS)
def test_a_session_gives_what_its_reference_gives(seed):
    verdicts = [verdict for _, verdict in run.session(seed, 30)]
    assert [v for v in verdicts if v and not v.startswith("refused: expected")] == []
    assert len(verdicts) == 30 and verdicts.count("") > 25


def test_graphs_of_symbolic_size():
    verdicts = [graphs.check(seed) for seed in range(12)]
    assert [v for v in verdicts if v.startswith("wrong")] == []
    assert sum(v.startswith("attention") for v in verdicts) > 6


@pytest.mark.parametrize("name", [n for n, (kind, _) in ROOTS.items() if kind == "graphs"][:2])
def test_an_undone_root_is_found(name):
    with undone(ROOTS[name][1]):
        assert first("graphs", 1, 40) is not None


@pytest.mark.parametrize("seed", range(30))
def test_the_models_spell_what_the_reference_counts(seed):
    """Kept positions by formula and by counting; softmax by hand and as spelled."""
    spec = meaning.draw(random.Random(seed))
    for n in (1, 2, 5, 9):
        if spec.mask != "none":
            got = models.allowed(spec, n, n, torch.ones(1))
            assert torch.equal(got, meaning.kept(spec, n, n))


def test_a_difference_is_an_error():
    assert compared.error(torch.ones(2), torch.ones(3)) == float("inf")
    assert compared.error(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")
    assert compared.error(torch.tensor([1.1]), torch.ones(1)) == pytest.approx(0.1, rel=1e-4)


def test_lengths_of_rows():
    spec = meaning.draw(random.Random(0))
    keep = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    assert reference.lengths(spec, keep, "visible").flatten().tolist() == [1, 2, 3]
    assert reference.lengths(spec, keep, "keys").item() == 3
    assert reference.lengths(spec, keep, 5.0).item() == 5
