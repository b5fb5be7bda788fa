"""The environment: equal where numbers can be compared, another where they cannot."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError

import pytest
import torch

from attnpass import environment


def test_a_context_is_plain_json_and_holds_all_that_a_tile_depends_on():
    found = environment.kernel_context()
    assert json.loads(json.dumps(found)) == found
    assert found.keys() == {"device", "isa", "threads", "torch", "kernels", "protocol"}
    assert found["torch"] == torch.__version__ and found["protocol"] == environment.PROTOCOL
    assert environment.kernel_context() == found


def test_the_number_of_threads_is_part_of_it():
    threads, before = torch.get_num_threads(), environment.device()
    torch.set_num_threads(threads + 1)
    try:
        assert environment.device() == {**before, "threads": threads + 1}
    finally:
        torch.set_num_threads(threads)


def test_the_kernel_sources_are_part_of_it(monkeypatch):
    before = environment.kernel_context()
    monkeypatch.setattr(environment, "kernels_digest", lambda: "other")
    assert environment.kernel_context() == {**before, "kernels": "other"}


def test_a_gpu_has_a_driver_and_a_triton_version(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "some GPU")
    found = environment.kernel_context("cuda")
    assert found["device"] == "some GPU" and "isa" not in found
    assert {"driver", "triton", "threads", "kernels"} <= found.keys()


@pytest.mark.parametrize(
    ("seen", "wide"), [("AVX2", False), ("AVX512+bf16", True), ("AVX512+amx", True), ("bf", False)]
)
def test_bfloat16_is_quick_where_there_are_instructions(seen, wide, monkeypatch):
    monkeypatch.setattr(environment, "instructions", lambda: seen)
    assert environment.has_native_bfloat16("cpu") is wide
    assert not environment.has_native_bfloat16("mps")


def test_instructions_name_the_extensions(monkeypatch):
    environment.instructions.cache_clear()
    monkeypatch.setattr(environment, "cpu_extensions", lambda: ("bf16", "amx"))
    try:
        assert environment.instructions().endswith("+bf16+amx")
    finally:
        environment.instructions.cache_clear()


def test_versions_say_none_for_a_package_that_is_absent(monkeypatch):
    found = environment.versions()
    assert found["python"] == platform.python_version() and found["torch"] == torch.__version__
    assert {"attnpass", "triton", "optuna"} <= found.keys()

    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(environment, "version", absent)
    assert environment.versions()["triton"] == "none"


def test_shapes_of_a_call():
    example = ({"image": torch.zeros(2, 3)}, [torch.zeros(1, dtype=torch.int64), True])
    assert environment.shapes(example) == [
        [[2, 3], "torch.float32"],
        [[1], "torch.int64"],
        "True",
    ]


def test_the_processor_has_a_name():
    assert environment.cpu_name()


@pytest.mark.parametrize(
    ("name", "switch", "value", "back"),
    [
        ("are_deterministic_algorithms_enabled", torch.use_deterministic_algorithms, True, False),
        ("get_default_dtype", torch.set_default_dtype, torch.float64, torch.float32),
        ("backends.cuda.math_sdp_enabled", torch.backends.cuda.enable_math_sdp, False, True),
    ],
)
def test_a_switch_of_torch_is_seen(name, switch, value, back):
    before = environment.switches()
    assert json.loads(json.dumps(before)) == before
    switch(value)
    try:
        after = environment.switches()
    finally:
        switch(back)
    assert [k for k in before if before[k] != after[k]] == [name]
    assert environment.switches() == before


@pytest.mark.parametrize("name", ["ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR"])
def test_a_variable_that_chooses_instructions_is_seen(name, monkeypatch):
    before = environment.switches()["variables"]
    monkeypatch.setenv(name, "other")
    monkeypatch.setenv("SOMETHING_ELSE", "other")
    assert environment.switches()["variables"] == {**before, name: "other"}


def test_a_precision_that_torch_will_not_tell_is_no_error(monkeypatch):
    def refuses():
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    assert environment.switches()["get_float32_matmul_precision"] == "medium"
    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuses)
    monkeypatch.delattr(torch, "get_default_dtype")
    found = environment.switches()
    assert found["get_float32_matmul_precision"] == "refused"
    assert found["get_default_dtype"] == "absent"
