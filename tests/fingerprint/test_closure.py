"""The user's sources behind a module: followed by every kind of import."""

from __future__ import annotations

import importlib
import sys

import pytest

from attnpass.fingerprint.closure import closure

FILES = {
    "start_of_it": "import helper_of_it as h\nfrom pack_of_it import inner\n",
    "helper_of_it": "def f():\n    from deeper_of_it import K\n    return K\n",
    "deeper_of_it": "K = 1\n",
    "pack_of_it/__init__": "",
    "pack_of_it/inner": "from . import other\nfrom .other import K\n",
    "pack_of_it/other": "import numpy\nNAME = 'named_of_it'\nK = 'SOME_VARIABLE'\n",
    "named_of_it": "",
    "apart_from_it": "",
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text in FILES.items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    for name in FILES:
        importlib.import_module(name.replace("/", ".").removesuffix(".__init__"))
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name.replace("/", ".").removesuffix(".__init__"), None)


def test_every_import_is_followed(files):
    found = closure(["start_of_it"])
    names = {x.replace("/", ".").removesuffix(".__init__") for x in FILES} - {"apart_from_it"}
    assert set(found.files) == names
    assert {"numpy", "torch"} <= set(found.libraries)


def test_a_byte_of_any_of_them_counts_and_of_no_other(files):
    before = closure(["start_of_it"]).sources
    for name in FILES:
        path = files / f"{name}.py"
        text = path.read_text()
        path.write_text(text + "\n# a comment\n")
        same = closure(["start_of_it"]).sources == before
        assert same == (name == "apart_from_it"), name
        path.write_text(text)
    assert closure(["start_of_it"]).sources == before


def test_variables_that_are_named_count_by_digest(files, monkeypatch):
    assert closure(["start_of_it"]).variables == {}
    monkeypatch.setenv("SOME_VARIABLE", "secret")
    (name, value), *more = closure(["start_of_it"]).variables.items()
    assert name == "SOME_VARIABLE" and value != "secret" and not more


def test_libraries_have_no_sources_and_ours_only_where_it_starts():
    assert not closure(["torch", "numpy.linalg", "never_heard_of"]).files
    assert not closure(["tiny_tasks"]).files.keys() & {"attnpass.tuner.digits", "attnpass"}
    importlib.import_module("attnpass.tuner.digits")
    assert set(closure(["attnpass.tuner.digits"]).files) == {"attnpass.tuner.digits"}
