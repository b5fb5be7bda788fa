"""The peak memory of a call: what it takes beyond what was held before."""

from __future__ import annotations

import sys

import pytest
import torch

from attnpass.tuner.measure import memory
from attnpass.tuner.measure.memory import peak_mib


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's own peak")
def test_a_call_that_takes_more_is_told():
    held = torch.ones(2**24)  # 64 MiB
    small, large = (peak_mib(lambda n=n: torch.ones(n * 2**18)) for n in (16, 256))
    assert 12 <= small <= 80 and 240 <= large <= 320 and len(held) == 2**24


def test_where_nothing_tells_it_none_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "none" / "clear_refs")
    assert peak_mib(lambda: None) is None
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "clear_refs")
    (tmp_path / "status").write_text("Name: x\n")
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    assert peak_mib(lambda: None) is None
