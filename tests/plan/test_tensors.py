"""Stored tensors: named, typed and bounded as a plan's are, and read from regular files alone."""

from __future__ import annotations

import os

import pytest
import torch
from plans import sealed
from safetensors.torch import load_file, save_file

from attnpass import Plan
from attnpass.errors import PlanError
from attnpass.plan.entry import Entry
from attnpass.plan.tensors import LARGEST_VALUE, read_tensors, split_tensors

SITES = {"a": Entry("sigmoid"), "b|c": Entry("sigmoid")}


def split(path, **tensors):
    return split_tensors({k.replace("__", "|"): v for k, v in tensors.items()}, SITES, path)


def test_parameters_and_deltas_by_their_names(tmp_path):
    ones = torch.ones(2, 2)
    values, deltas = split(tmp_path, a__b=ones[0], a__w__full=ones, b__c__b=ones[0])
    assert {site: list(own) for site, own in values.items()} == {"a": ["b"], "b|c": ["b"]}
    assert list(deltas["a"]) == ["w"] and torch.equal(deltas["a"]["w"].full, ones)


@pytest.mark.parametrize("key", ["", "a", "a|", "|", "other|b", "b|b", "|" * 10**5])
def test_other_names_are_refused(key, tmp_path):
    with pytest.raises(PlanError, match="named site.name"):
        split_tensors({key: torch.ones(1)}, SITES, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("key", ["a|b", "a|w|full"])
def test_values_that_no_training_gives_are_refused(key, value, tmp_path):
    good = torch.full((2, 2), LARGEST_VALUE)
    split_tensors({key: good}, SITES, tmp_path)
    good[1, 1] = value
    with pytest.raises(PlanError, match="expected numbers of at most 1e.06 at"):
        split_tensors({key: good}, SITES, tmp_path)


def test_empty_and_low_precision_tensors_are_taken(tmp_path):
    half = torch.ones(2, dtype=torch.bfloat16)
    values, _ = split(tmp_path, a__b=half, a__k0=torch.ones(0, 3))
    assert values["a"]["b"].dtype == torch.bfloat16 and values["a"]["k0"].numel() == 0


def test_a_pipe_a_device_a_folder_and_a_link_to_one_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "link", tmp_path, "/dev/zero", tmp_path / "none"):
        with pytest.raises(PlanError, match="expected the plan's parameters at"):
            read_tensors(tmp_path / path)


def test_a_file_of_many_gigabytes_is_refused_unread(tmp_path):
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(2**36)
    with pytest.raises(PlanError, match="68,719,476,736 bytes, more than"):
        read_tensors(tmp_path / "sparse")


def test_a_path_that_is_not_utf8(saved, tmp_path):
    folder = tmp_path / os.fsdecode(b"\xff\xfe")
    _, plan, _ = saved
    path = plan.save(folder / "plan.json")
    assert Plan.load(path).hash == plan.hash


def test_all_parameters_of_a_saved_site_or_none_at_all(saved):
    _, _, path = saved
    tensors = path.with_suffix(".safetensors")
    held = load_file(tensors)
    site = next(iter(held)).split("|")[0]
    save_file({k: v for k, v in held.items() if not k.startswith(f"{site}|")}, tensors)
    with pytest.raises(PlanError, match=f"expected the parameters of {site} .* got none"):
        Plan.load(sealed(path))
