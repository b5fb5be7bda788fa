"""Free memory, and the limit on what a forward pass keeps."""

from __future__ import annotations

import pytest
import torch

from attnpass import memory
from attnpass.memory import UNTOLD, MemoryIsShortError, free_bytes, kept_at_most

CPU = torch.device("cpu")


def test_free_memory_is_the_machines_within_the_containers_limit(monkeypatch, tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:  9 kB\nMemAvailable:  3 kB\n")
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert free_bytes(CPU) == 3 * 1024
    (tmp_path / "memory.current").write_text("1000\n")
    for told, free in (("max", 3 * 1024), ("1500", 500), ("900", 0)):
        (tmp_path / "memory.max").write_text(f"{told}\n")
        assert free_bytes(CPU) == free
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "none")
    (tmp_path / "memory.max").unlink()
    assert free_bytes(CPU) == UNTOLD


def test_a_forward_pass_that_keeps_more_is_ended():
    x = torch.ones(256, requires_grad=True)  # 1 KiB, kept by every product
    with kept_at_most(1024):
        (x * x * 2).sum().backward()
    assert torch.equal(x.grad, torch.full((256,), 4.0))
    with pytest.raises(MemoryIsShortError), kept_at_most(1024):
        _ = (x * x) * x.exp()


def test_what_is_let_go_of_does_not_count():
    x = torch.ones(256, requires_grad=True)
    with kept_at_most(2048):
        for _ in range(20):
            y = x.exp().exp()
            del y
