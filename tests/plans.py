"""A small model, its plans and their files, for the tests of plans."""

from __future__ import annotations

import json

import torch
from models import DISTINCT, Stack

from attnpass.plan.tensors import digest_tensors

BOUND = 1e-5


def data(batch=2, tokens=5):
    return torch.randn(batch, tokens, DISTINCT.D, generator=torch.Generator().manual_seed(batch))


def build(depth=2, **kwargs):
    torch.manual_seed(3)
    return Stack(depth, **kwargs).eval()


def error(got, want):
    assert got.shape == want.shape
    got, want = got.detach().double(), want.detach().double()
    return ((got - want).abs().max() / want.abs().max()).item()


def shaken(plan):
    """The plan with random numbers added to its parameters."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in plan.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    return plan


def edited(path, **changes):
    """The file with entries changed: ``a__b=value`` sets ``["a"]["b"]``; dots in site names."""
    content = json.loads(path.read_text())
    for key, value in changes.items():
        *parents, last = key.split("__")
        at = content
        for parent in parents:
            at = at[parent.replace("_", ".") if parent.startswith("blocks") else parent]
        last = last.replace("_", ".") if last.startswith("blocks") else last
        if value is None:
            del at[last]
        else:
            at[last] = value
    path.write_text(json.dumps(content))
    return path


def sealed(path):
    """The file with the digest of the tensors that are beside it now."""
    from safetensors.torch import load_file

    content = json.loads(path.read_text())
    held = load_file(path.parent / content["parameters"])
    path.write_text(json.dumps(content | {"digest": digest_tensors(held)}))
    return path
