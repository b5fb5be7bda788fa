"""What else a machine did while it was measured."""

from __future__ import annotations

import json
import os
from collections import namedtuple

import psutil
import pytest
import torch

from attnpass.tuner.measure.conditions import Conditions, Watch, limited


def test_what_other_processes_and_the_host_took(monkeypatch):
    """In ten seconds of two processors: five of this process, four of others, one stolen."""
    names = ("user", "nice", "system", "idle", "iowait", "steal", "guest")
    Ticks = namedtuple("Ticks", names)
    ticks = iter([Ticks(100, 0, 10, 500, 5, 3, 50), Ticks(107, 0, 12, 508, 7, 4, 57)])
    own = iter([(1.0, 1.0, 0.0, 0.0, 0.0), (4.0, 2.0, 1.0, 0.0, 10.0)])
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(ticks))
    monkeypatch.setattr(os, "times", lambda: next(own))
    found = Watch().conditions()
    assert (found.others, found.stolen) == (4 / 20, 1 / 20)


def test_of_this_machine():
    found = Watch().conditions()
    assert 0 <= found.others <= 1 and 0 <= found.stolen <= 1 and found.load >= 0


def test_they_are_json_and_come_back():
    found = Watch().conditions(pinned=True)
    assert Conditions.from_dict(json.loads(json.dumps(found.as_dict()))) == found
    assert found.threads == torch.get_num_threads()


@pytest.mark.parametrize("value", [None, {}, 3, {"load": 1.0}, {"load": "x"}])
def test_what_is_damaged_is_none(value):
    assert Conditions.from_dict(value) is None


def test_they_are_told_in_one_line():
    told = str(Conditions(1.25, 0.5, 0.01, 2600, 1, pinned=True))
    assert told == (
        "load 1.2, others took 50% of the processors and the host 1%, 2.6 GHz,"
        " 1 thread on one processor"
    )
    assert str(Conditions(0, 0, 0, 0, 2)).endswith("the host 0%, 2 threads")


def test_threads_and_processors_are_as_before_afterwards():
    threads, allowed = torch.get_num_threads(), os.sched_getaffinity(0)
    with limited(1, True) as pinned:
        assert pinned and torch.get_num_threads() == 1 and len(os.sched_getaffinity(0)) == 1
    assert (torch.get_num_threads(), os.sched_getaffinity(0)) == (threads, allowed)
    with limited(0, False) as pinned:
        assert not pinned and torch.get_num_threads() == threads
