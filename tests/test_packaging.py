"""The files around the code: metadata, licence, changelog, hooks, hosted CI."""

from __future__ import annotations

import re
import tomllib

import house
import yaml

import attnpass

ROOT = house.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))


def test_metadata_is_complete():
    assert PROJECT["version"] == attnpass.__version__
    assert PROJECT["license"] == "Apache-2.0" and PROJECT["license-files"] == ["LICENSE"]
    assert PROJECT["authors"] == [{"name": "The attnpass authors"}]
    assert PROJECT["description"] and PROJECT["readme"] == "README.md"
    assert len(PROJECT["keywords"]) >= 5
    # a licence is stated once, as an expression: a classifier beside it is an error (PEP 639)
    assert not [c for c in PROJECT["classifiers"] if c.startswith("License")]
    assert {"Typing :: Typed", "Operating System :: POSIX :: Linux"} <= set(PROJECT["classifiers"])
    assert (ROOT / "attnpass" / "py.typed").exists()


def test_the_licence_is_whole():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert all(f"\n   {n}. " in text for n in range(1, 10))
    assert "Copyright 2026 The attnpass authors" in text and "[yyyy]" not in text


def test_the_changelog_names_this_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (\S+)(?: - \d{4}-\d\d-\d\d)?$", text, re.M)
    assert versions[:2] == ["Unreleased", attnpass.__version__]
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (\w+)$", text, re.M)) <= kinds


def test_hooks_and_hosted_ci_call_targets_of_make():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    entries = [hook["entry"].split() for hook in hooks[0]["hooks"]]
    assert entries and all(e[0] == "make" and set(e[1:]) <= TARGETS for e in entries)
    ci = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = ci["jobs"].values()
    assert job["strategy"]["matrix"]["target"] == ["test", "demo"]
    assert {"test", "demo"} <= TARGETS
    assert job["steps"][-1]["run"] == "make ${{ matrix.target }}"
