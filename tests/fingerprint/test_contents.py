"""What a task consists of, by name."""

from __future__ import annotations

import torch
from torch import nn

from attnpass.fingerprint import contents


def score(output, target):
    return output


class Model(nn.Module):
    def __init__(self, k=1.0, hold=1.0):
        super().__init__()
        self.weight, self.k, self.held = nn.Parameter(torch.full((2,), k)), 3, [hold]


def test_each_part_has_a_name():
    first = contents(Model(), score, [1], [__name__])
    names = {"weights", "model", "score", "data", "operators", "sources", "libraries", "variables"}
    assert first.digests.keys() == names and first.opaque == ()

    def changed(*given):
        found = contents(*given, [__name__]).digests
        return {name for name in names if found[name] != first.digests[name]}

    assert changed(Model(), score, [1]) == set()
    assert changed(Model(k=2.0), score, [1]) == {"weights", "model"}
    assert changed(Model(hold=2.0), score, [1]) == {"model"}
    assert changed(Model(), score, [2]) == {"data"}
    assert changed(Model(), len, [1]) == {"score"}


def test_operators_of_the_user_count():
    def taken(k):
        @torch.library.custom_op("contents_test::scaled", mutates_args=())
        def scaled(x: torch.Tensor) -> torch.Tensor:
            return x * k

        return contents(Model(), score, [1], [__name__]).digests["operators"], scaled

    found = [taken(k)[0] for k in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_what_shows_no_content_is_named():
    rows = contents(Model(), score, [iter([1]), (y for y in [1])], [])
    assert rows.opaque == ("builtins.generator",)
