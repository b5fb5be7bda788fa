"""The miniature for learners: fires, equals eager, leaves other spellings alone, and its limit."""

from __future__ import annotations

import functools
import re
import sys

import house
import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(house.ROOT / "examples"))

import tiny_pass

X = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(1))


def compiled(model: nn.Module, form: tiny_pass.Form) -> tuple[Tensor, list[str]]:
    log: list[str] = []
    backend = functools.partial(tiny_pass.tiny_pass, form=form, log=log)
    with torch.no_grad():
        return torch.compile(model.eval(), backend=backend, fullgraph=True)(X), log


class Spelled(tiny_pass.Layer):
    """The layer with another function of q, k and v."""

    def __init__(self, attend) -> None:
        super().__init__()
        self.attend = attend

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(self.attend(q, k, v, self.scale).transpose(1, 2).flatten(2))


def channels(q, k, v, scale):
    """Channel attention: the product runs over tokens, and softmax over features."""
    q, k, v = q.mT, k.mT, v.mT
    return ((q @ k.transpose(-2, -1) * scale).softmax(dim=-1) @ v).mT


def test_softmax_in_its_place_is_eager():
    model = nn.Sequential(tiny_pass.Layer(), tiny_pass.Layer())
    out, log = compiled(model, tiny_pass.softmax)
    assert len(log) == 2
    torch.testing.assert_close(out, model(X))


def test_sigmoid_is_what_the_layer_gives_with_sigmoid_written_in():
    model, written = tiny_pass.Layer(), Spelled(tiny_pass.sigmoid)
    written.load_state_dict(model.state_dict())
    out, log = compiled(model, tiny_pass.sigmoid)
    assert len(log) == 1
    torch.testing.assert_close(out, written(X))
    assert not torch.allclose(out, model(X), atol=1e-4)


@pytest.mark.parametrize(
    "attend",
    [
        lambda q, k, v, s: (q @ k.transpose(-2, -1) * s).softmax(dim=-2) @ v,
        lambda q, k, v, s: torch.softmax(q @ k.transpose(-2, -1) * s, -1) @ v,
        lambda q, k, v, s: (q @ k.transpose(2, 3) * s).softmax(dim=-1) @ v,
        lambda q, k, v, s: (q @ k.transpose(-2, -1) + s).softmax(dim=-1) @ v,
        lambda q, k, v, s: (q @ k.transpose(-2, -1) * s).softmax(dim=-1).mean() * v,
        lambda q, k, v, s: (v.mT @ (q @ k.transpose(-2, -1) * s).softmax(dim=-1)).mT,
        lambda q, k, v, s: (w := (q @ k.transpose(-2, -1) * s).softmax(dim=-1)) @ v + w.sum(),
    ],
    ids=["over queries", "function", "axes", "added", "no product", "values", "weights read"],
)
def test_other_spellings_are_left_alone(attend):
    model = Spelled(attend)
    out, log = compiled(model, tiny_pass.sigmoid)
    assert log == []
    torch.testing.assert_close(out, model(X))


def test_its_docstring_names_its_limit_truly():
    """Channel attention is rewritten, wrongly; attnpass declines it."""
    import attnpass

    model = Spelled(channels)
    out, log = compiled(model, tiny_pass.sigmoid)
    assert len(log) == 1 and not torch.allclose(out, model(X), atol=1e-4)
    report = attnpass.find_sites(model, X)
    assert [d.code for d in report.declined] == ["AXIS_NOT_TOKEN"] and not report.sites


def test_the_command_prints_both_forms(capsys):
    tiny_pass.main()
    exact, other = re.findall(
        r"2 sites rewritten, differs from eager by (\S+)", capsys.readouterr().out
    )
    assert float(exact) < 1e-6 < float(other) < 0.1
