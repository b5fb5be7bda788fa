"""The pages name only what exists: files, functions, commands, options, links, blocks of code."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import house
import pytest
import torch

from attnpass.tuner.cli import main
from attnpass.tuner.digits import DigitsViT

ROOT = house.ROOT
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
SUFFIXES = "py|md|cpp|h|json|sh|toml|yml|yaml|safetensors|png"
YOURS = {"my.py", "plan.json", "file.py", "__init__.py"}
"""Files of the reader's own, and those that every room has."""
IMAGES = torch.zeros(2, 1, 32, 32)
EXECUTED = {"README.md": 1, "docs/usage.md": 2, "docs/recovery.md": 2, "CONTRIBUTING.md": 1}
"""Blocks of Python per page: those of CONTRIBUTING.md are executed here, of recovery.md in
recover/test_distillation_loss.py, the others in test_readme.py."""

every_page = pytest.mark.parametrize("name", sorted(PAGES))


def spans(text: str) -> list[str]:
    """The inline code of a page, line breaks in it as spaces."""
    prose = re.sub(r"^( *)```.*?^ *```", "", text, flags=re.S | re.M)
    return [" ".join(x.split()) for x in re.findall(r"`([^`]+)`", prose)]


def lines(text: str) -> list[str]:
    """Inline code, and the lines of blocks without their comments."""
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, flags=re.S | re.M)
    inside = [x.partition("  #")[0].strip() for block in blocks for x in block.splitlines()]
    return [x.removeprefix("$ ") for x in [*spans(text), *inside]]


def names(path: Path) -> set[str]:
    """What a Python file defines, methods as ``Class.method``."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {t.id for t in targets if isinstance(t, ast.Name)}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
            inner = node.body if isinstance(node, ast.ClassDef) else []
            found |= {f"{node.name}.{x.name}" for x in inner if isinstance(x, ast.FunctionDef)}
    return found


@every_page
def test_paths_exist(name):
    found = [x for x in spans(PAGES[name]) if re.fullmatch(rf"[\w./-]+\.({SUFFIXES})", x)]
    missing = [x for x in found if x not in YOURS and not (ROOT / x).exists()]
    assert missing == []
    folders = [x for x in spans(PAGES[name]) if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/", x)]
    assert [x for x in folders if not (ROOT / x).is_dir()] == []


@every_page
def test_code_locations_exist(name):
    """``file.py::name`` and ``file.py::Class.method``."""
    found = [x.split("::") for x in spans(PAGES[name]) if re.fullmatch(r"[\w./-]+\.py::[\w.]+", x)]
    missing = [
        f"{path}::{inside}"
        for path, inside in found
        if not (ROOT / path).exists() or inside not in names(ROOT / path)
    ]
    assert missing == []


@every_page
def test_dotted_names_exist(name):
    missing = []
    for dotted in re.findall(r"\battnpass(?:\.\w+)+", " ".join(spans(PAGES[name]))):
        if dotted.rpartition(".")[2] in ("db", "html"):
            continue
        at, parts = importlib.import_module("attnpass"), dotted.split(".")[1:]
        for i, part in enumerate(parts):
            if not hasattr(at, part):
                try:
                    importlib.import_module(".".join(["attnpass", *parts[: i + 1]]))
                except ModuleNotFoundError:
                    missing.append(dotted)
                    break
            at = getattr(at, part)
    assert missing == []


@every_page
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        if target.startswith("https://"):
            continue
        path, _, section = target.partition("#")
        page = (ROOT / name).parent / path if path else ROOT / name
        assert page.exists(), target
        if section:
            titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
            slugs = {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}
            assert section in slugs, target


@every_page
def test_commands_of_attnpass_exist(name):
    for line in lines(PAGES[name]):
        if not re.match(r"attnpass [a-z]", line):
            continue
        _, command, *rest = shlex.split(line)
        assert command in main.commands, line
        known = {o for p in main.commands[command].params for o in p.opts}
        assert {x.partition("=")[0] for x in rest if x.startswith("--")} <= known, line


def test_every_command_of_attnpass_is_documented():
    said = {x.split()[1] for x in spans(PAGES["docs/usage.md"]) if x.startswith("attnpass ")}
    assert said >= set(main.commands)


@every_page
def test_scripts_take_what_is_said(name):
    """``python benchmarks/x.py words --options``: each stands in the script."""
    for line in lines(PAGES[name]):
        found = re.match(r"(?:\.venv/bin/)?python (\S+\.py)(.*)", line)
        if found is None or found[1] in YOURS:
            continue
        text = (ROOT / found[1]).read_text()
        words = [x.partition("=")[0] for x in shlex.split(found[2])]
        options = [x for x in words if x.startswith("--")]
        assert [x for x in options if f'"{x}"' not in text] == [], line
        if words and not words[0].startswith(("--", "[")) and words[0].islower():
            assert f'"{words[0]}"' in text, line


@every_page
def test_targets_of_make_exist(name):
    targets = set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.M))
    used = [x.split()[1] for x in lines(PAGES[name]) if re.match(r"make [a-z]", x)]
    assert [x for x in used if x not in targets] == []


@every_page
def test_every_block_of_python_is_executed(name):
    count = len(re.findall(r"^ *```python$", PAGES[name], re.M))
    assert count == EXECUTED.get(name, 0)


def test_the_normal_form_is_printed_as_contributors_are_told(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", PAGES["CONTRIBUTING.md"], re.S)
    model = DigitsViT(dim=16, depth=2, heads=2)
    exec(compile(block, "CONTRIBUTING.md", "exec"), {"model": model, "inputs": (IMAGES,)})
    assert capsys.readouterr().out.count("scaled_dot_product_attention") >= 2


def test_environment_variables_are_read_somewhere():
    code = "".join(path.read_text() for path in house.modules().values())
    for text in PAGES.values():
        for variable in re.findall(r"\bATTNPASS_[A-Z]+", text):
            assert variable in code, variable
