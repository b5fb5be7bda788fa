"""Every example of a code in docs/matching.md gives that code; its count is the golden census'."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
from zoo import census

import attnpass

PAGE = (Path(__file__).parents[1] / "docs" / "matching.md").read_text()
ROWS = re.findall(r"^\| `([A-Z_]+[\w:]*)` \| `(.+)` \| (\d+) \|$", PAGE, re.M)


@torch.library.custom_op("documented::attention", mutates_args=())
def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v).clone()


@attention.register_fake
def _(q, k, v):
    return torch.empty_like(q)


class library:
    attention = attention


@torch.compiler.disable
def broken(x):
    return x


@torch.compiler.disable
def outside(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def low(keep, fill):
    return torch.where(keep, 0.0, fill)


NAMES = {"torch": torch, "F": F, "flex_attention": flex_attention, "low": low}
NAMES |= {"library": library, "broken": broken, "outside": outside}

SETUP = """
def forward(self, x, keep, pattern):
    q, k, v = self.made(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
    layer, mix, table, c = self.layer, self.mix, self.table, self.conv(x.mT)
    sink = self.sink.expand(x.shape[0], -1, x.shape[1], -1)
    return {}
"""


def model(example):
    """A module whose forward returns what an example says."""
    made = {}
    exec(SETUP.format(example), NAMES, made)

    class Example(nn.Module):
        forward = made["forward"]

        def __init__(self):
            super().__init__()
            self.made, self.layer = nn.Linear(24, 24), nn.Linear(24, 5)
            self.mix, self.conv = nn.Linear(2, 2), nn.Conv1d(24, 6, 3)
            self.table = nn.Parameter(torch.randn(2, 5, 5))
            self.sink = nn.Parameter(torch.randn(1, 2, 1, 1))

    return Example()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("code", "example"), [row[:2] for row in ROWS], ids=lambda x: x)
def test_the_example_gives_the_code(code, example):
    torch._dynamo.reset()
    torch.manual_seed(0)
    given = torch.randn(2, 5, 24), torch.rand(2, 1, 1, 5) > 0.3, torch.rand(5, 5) > 0.3
    report = attnpass.find_sites(model(example).train(code == "DROPOUT_TRAINING"), *given)
    refused = {d.code for s in report.sites for d in s.legal.values() if d is not None}
    assert code in {d.code for d in report.declined} | refused
    # what Dynamo resumes in has no line where its source is no file
    assert all(d.hint and (d.source or code == "CROSS_GRAPH") for d in report.declined)


def test_the_counts_are_those_of_the_corpus():
    found = Counter()
    for record in json.loads(census.GOLDEN.read_text()).values():
        for codes in (record["declined"], record["refused"]):
            for code, count in codes.items():
                found[code.partition(":")[0] if code.startswith("UNKNOWN") else code] += count
    for code, _, count in ROWS:
        kind = code.partition(":")[0] if code.startswith("UNKNOWN") else code
        assert int(count) == found[kind], code


def test_every_code_of_the_declines_page_is_there():
    page = (Path(__file__).parents[1] / "docs" / "declines.md").read_text()
    cells = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    codes = {code for cell in cells for code in re.findall(r"`([A-Z_]+(?::[a-z]+)?)", cell)}
    shown = {code.partition(":")[0] if code.startswith("UNKNOWN") else code for code, *_ in ROWS}
    assert codes - {"DYNAMIC_AXIS", "SHARED_GRAPH", "INTERNAL_ERROR", "INDUCTOR"} == shown
