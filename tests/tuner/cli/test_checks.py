"""The commands that look at a model, a plan or the machine."""

from __future__ import annotations

import json

import torch
from tuning import TASKS, TINY, run


def test_sites_as_json_and_as_a_table():
    found = run("sites", TINY, "--json")
    assert found.returncode == 0
    data = json.loads(found.stdout)
    assert [s["name"] for s in data["sites"]] == [f"blocks.{i}.attn" for i in range(3)]
    assert data["sites"][0]["legal"]["skipat"]["code"] == "CROSS_GRAPH"
    table = run("sites", TINY)
    assert "blocks.2.attn" in table.stdout


def test_roundtrip_is_equal():
    found = run("roundtrip", TINY, "--json", apart=True)
    data = json.loads(found.stdout)
    assert found.returncode == 0
    assert data["equal"] and len(data["sites"]) == 3 and data["all"] <= 1e-5


def test_cka(tmp_path):
    path = tmp_path / "cka.png"
    done = run("cka", TINY, "--json", "--picture", str(path))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["Z"]) == len(found["A"]) == len(found["sites"]) == 3
    assert path.read_bytes().startswith(b"\x89PNG")
    table = run("cka", TINY)
    assert "CKA of block outputs" in table.stdout and "like the layer before" in table.stdout
    bad = run("cka", TINY, "--least", "2")
    assert bad.returncode == 1 and "expected --least from -1 to 1, got 2.0" in bad.stderr


def test_verify_of_another_models_plan_names_the_problem(stored, tmp_path):
    _, path, _ = stored
    found = run("verify", str(path), "digits", "--json", db=tmp_path / "a.db")
    data = json.loads(found.stdout)
    assert found.returncode == 1
    assert any("another model" in line for line in data["problems"])


def test_doctor_says_what_is_there(tmp_path):
    found = run("doctor", "--json", db=tmp_path / "a.db")
    rows = {r["what"]: r for r in json.loads(found.stdout)["checks"]}
    assert rows["torch"]["found"] == torch.__version__
    assert rows["database"]["ok"]


def test_a_model_whose_arguments_are_named():
    for name in ("sites", "cka", "roundtrip"):
        shown = run(name, f"{TASKS}:named", "--json")
        assert shown.returncode == 0 and len(json.loads(shown.stdout)["sites"]) == 3, name


def test_a_model_without_attention_fails(tmp_path):
    found = run("sites", f"{TASKS}:no_attention", "--json")
    assert found.returncode == 1 and json.loads(found.stdout)["sites"] == []
