"""Whose a module is."""

from __future__ import annotations

import functools
import importlib
import json
import sys

import torch
from tiny_tasks import tiny

from attnpass.fingerprint.origin import is_installed, is_library, is_named, source_of


def test_files_of_packages_are_installed_and_others_are_not(tmp_path):
    assert is_installed(torch.__file__) and is_installed(json.__file__)
    assert not is_installed(__file__) and not is_installed(tmp_path / "a.py")


def test_modules_of_packages_are_the_library_s():
    assert all(map(is_library, ("torch.nn", "json", "builtins", "attnpass.task", "sys")))
    assert not any(map(is_library, ("tiny_tasks", "__main__", "never_heard_of", None)))


def test_a_user_s_module_may_have_a_name_of_the_standard_library(tmp_path, monkeypatch):
    (tmp_path / "sched.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "sched", raising=False)
    assert is_library("sched")
    assert importlib.import_module("sched").__file__ == str(tmp_path / "sched.py")
    assert not is_library("sched") and source_of(sys.modules["sched"]) is not None
    monkeypatch.delitem(sys.modules, "sched")


def test_only_modules_of_the_user_have_sources():
    assert source_of(sys.modules["tiny_tasks"]).name == "tiny_tasks.py"
    assert source_of(torch) is None and source_of(sys) is None


def test_a_name_must_lead_to_what_has_it():
    assert is_named(torch.nn.Linear) and is_named(json.dumps) and is_named(torch.nn.Linear.forward)
    assert not is_named(tiny)
    assert not is_named(functools.wraps(json.dumps)(lambda: 0))
    assert not is_named(torch.compiler.disable(lambda: 0))
