"""Only equal devices are compared; the most common ones measure."""

from __future__ import annotations

import pytest
import torch

from attnpass import environment
from attnpass.errors import OptionError
from attnpass.tuner.measure import choose_class, class_of, described, differing, identity

OWN = {"device": "EPYC", "isa": "AVX512", "threads": 2, "torch": "2.13.0", "switches": {"a": 1}}
NARROW = {**OWN, "isa": "AVX2", "threads": 1}
OTHER = {**OWN, "switches": {"a": 2}}
GPU = {"device": "H100", "driver": "12.8", "threads": 2, "torch": "2.13.0"}


def test_the_identity_of_this_process():
    found = identity("cpu")
    assert found.items() >= environment.device().items()
    assert found["torch"] == torch.__version__ and found["switches"] == environment.switches()


def test_the_most_common_class_is_chosen():
    assert choose_class([OWN, NARROW, NARROW], OWN) == class_of(NARROW)
    assert choose_class([NARROW, OWN], OWN) == class_of(OWN), "as many of each: the coordinator's"
    assert choose_class([NARROW, OTHER], OWN) == class_of(NARROW), "else the first"
    assert choose_class([NARROW, NARROW, GPU], OWN, "h100") == class_of(GPU)
    with pytest.raises(OptionError, match="like 'a100', got: EPYC, AVX2, 1 thread, torch 2.13.0"):
        choose_class([NARROW], OWN, "a100")


def test_a_class_in_words():
    assert described(OWN) == "EPYC, AVX512, 2 threads, torch 2.13.0"
    assert described(GPU) == "H100, CUDA 12.8, 2 threads, torch 2.13.0"
    assert differing(OWN, NARROW) == ["isa", "threads"] and differing(OWN, OTHER) == ["switches"]
