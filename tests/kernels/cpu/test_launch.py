"""The C++ library: where it is there, what it refuses, and what a call hands it."""

from __future__ import annotations

import functools
import shutil
from concurrent.futures import ThreadPoolExecutor

import problems
import pytest
import torch
from kernel_checks import check, check_hydra, hydra_inputs
from problems import CASES

from attnpass.errors import BuildError
from attnpass.kernels.cpu import build
from attnpass.kernels.cpu import launch as cpu


def test_the_kernels_are_there_where_the_machine_has_what_they_need():
    able = torch.backends.cpu.get_cpu_capability() != "DEFAULT" and shutil.which("g++") is not None
    for name in build.PARTS:
        assert able == (cpu.refusal(name) is None)


def test_without_a_compiler_plain_torch_runs_and_one_line_says_so(monkeypatch, caplog):
    def fails(name):
        raise BuildError("expected a C++ compiler, found none")

    monkeypatch.setattr(build, "load", fails)
    monkeypatch.setattr(cpu, "library", functools.cache(cpu.library.__wrapped__))
    p = problems.problem(CASES["all"])
    check(p, "sigmoid", "fused")
    assert cpu.refusal("pointwise") == "no C++ kernel: expected a C++ compiler, found none"
    lines = [r for r in caplog.records if "expected a C++ compiler" in r.message]
    assert len(lines) == 2  # one per kernel, forward and backward, not one per call


@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")
def test_with_onednn_switched_off_plain_torch_runs(path):
    with torch.backends.mkldnn.flags(enabled=False):
        check(problems.problem(CASES["all"]), "relu", "fused")
        check_hydra("fused", *hydra_inputs("plain"), False)


def test_a_dtype_that_no_kernel_reads_is_refused():
    x = torch.empty(1, dtype=torch.float64)
    assert (
        cpu.refusal("pointwise", x) == "torch.float64 on cpu is computed by plain torch operations"
    )
    assert cpu.refusal("pointwise", torch.empty(1, device="meta")) is not None


def test_a_struct_of_another_size_is_not_read(path):
    if path == "c++":
        with pytest.raises(AssertionError, match="pointwise takes another struct"):
            cpu.run_kernel("pointwise", "pointwise", [1, 2, 0.5], [])


def test_rows_are_copied_only_where_features_lie_apart():
    x = torch.randn(2, 3, 4, 5)
    assert cpu.unit_rows(x) is x
    apart = x.transpose(2, 3)
    assert cpu.unit_rows(apart).stride(-1) == 1
    assert torch.equal(cpu.unit_rows(apart), apart)
    assert cpu.unit_rows(x[..., ::5]) is not None


def test_threads_of_python_share_no_memory(path):
    """Calls of several sizes, dtypes and tiles at once give the bits that each gives alone."""

    def call(i):
        draw = torch.Generator().manual_seed(i)
        t, d = (40, 33, 65, 18)[i % 4], (8, 32, 17)[i % 3]
        dtype = (torch.float32, torch.bfloat16, torch.float16)[i % 3]
        q, k, v, grad = torch.randn(4, 2, 2, t, d, generator=draw).to(dtype)
        tile = [(16, 128, 7)[i % 3], (32, 256)[i % 2], 4, 2, 1]
        bias = torch.randn(1, 2, t, t, generator=draw)
        terms = (bias, None, torch.ones(2), None, torch.ones(1, 2, 1, 1), 0.3, "gelu", i % 2 == 0)
        out = torch.ops.attnpass.pointwise(q, k, v, *terms, tile, tile)
        back = torch.ops.attnpass.pointwise_backward(grad, q, k, v, *terms, tile, True)
        sums = torch.ops.attnpass.hydra_backward(grad, q, k, v, None, None, True, 1e-6, tile)
        return [out, *back, *sums]

    alone = [call(i) for i in range(24)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for wanted, found in zip(alone, pool.map(call, range(24)), strict=True):
                for want, got in zip(wanted, found, strict=True):
                    assert torch.equal(want, got)
