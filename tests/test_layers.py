"""Who may import whom, what an import costs, and how the package is put together."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = (
    "triton",
    "optuna",
    "sqlite_utils",
    "rich",
    "scipy",
    "safetensors",
    "click",
    "matplotlib",
    "platformdirs",
    "sklearn",
)

# each layer may import the layers before it, and files of its own layer
LAYERS = [
    {"errors", "site", "seeds"},
    {
        "legality",
        "functional",
        "opaque",
        "normalize",
        "axes",
        "contraction",
        "masks",
        "recipe",
        "chain",
        "layout",
        "maps",
        "logits",
        "region",
        "match",
        "spelled",
        "handoff",
    },
    {"kernels"},
    {"forms"},
    {"delta", "plan"},
    {"rewrite"},
    {
        "capture",
        "report",
        "options",
        "store",
        "backend",
        "plain",
        "task",
        "behaviour",
        "observe",
        "recover",
        "watch",
        "objectives",
        "trainer",
        "distillation",
        "environment",
    },
    {"tuner"},
]

# Plan.create and Plan.bind take a model, and only a capture can read one: imported when called
DOORS = {("plan", "capture")}


def modules() -> dict[str, Path]:
    found = {p.stem: p for p in (ROOT / "attnpass").glob("*.py") if p.stem != "__init__"}
    for folder in ("kernels", "tuner"):
        found |= {f"{folder}.{p.stem}": p for p in (ROOT / folder).glob("*.py")}
    return found


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
    return found


def layer(name: str) -> int:
    top = name.split(".")[0]
    return next(i for i, names in enumerate(LAYERS) if top in names)


@pytest.mark.parametrize("name", sorted(modules()))
def test_arrows(name):
    for target in imports(modules()[name]):
        parts = target.split(".")
        if parts[0] != "attnpass" or len(parts) < 2:
            continue
        if (name, parts[1]) not in DOORS:
            assert layer(parts[1]) <= layer(name), f"{name} imports {target}"
    # matching knows torch.fx and never a kernel
    if layer(name) == 1:
        assert not any(t.startswith("attnpass.kernels") for t in imports(modules()[name]))


TRITON = {
    f"kernels.{x}"
    for x in ("pointwise_triton", "pointwise_backward_triton", "hydra_triton", "triton_launch")
}


@pytest.mark.parametrize(
    ("package", "files"),
    [
        ("triton", TRITON),
        ("optuna", {"tuner.search", "tuner.tiles"}),
        ("sqlite_utils", {"store"}),
        ("sqlite3", {"store"}),
    ],
)
def test_a_package_is_imported_in_its_own_files_alone(package, files):
    users = {
        n for n, p in modules().items() if any(t.split(".")[0] == package for t in imports(p))
    }
    assert users == files


def test_the_oracle_is_imported_by_no_fast_path():
    users = [n for n, p in modules().items() if any("kernels.reference" in t for t in imports(p))]
    # which checks candidates, and computes nothing for a user
    assert users == ["tuner.calls"]


def test_folders_are_flat_without_init():
    for folder in ("kernels", "tuner"):
        assert not (ROOT / folder / "__init__.py").exists()
        assert not [p for p in (ROOT / folder).iterdir() if p.is_dir() and p.name != "__pycache__"]
        assert (ROOT / "attnpass" / folder).is_symlink()


def fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_import_needs_torch_alone():
    loaded = fresh(
        "import sys, torch; before = set(sys.modules); import attnpass;"
        f"print(sorted({{m.split('.')[0] for m in set(sys.modules) - before}} & set({HEAVY!r})))"
    )
    assert loaded.strip() == "[]"
    added = fresh(
        "import sys, torch; before = set(sys.modules); import attnpass;"
        "print(*sorted(set(sys.modules) - before))"
    )
    assert added.split() == ["attnpass"]


def test_backend_and_script_are_registered():
    found = fresh("import torch._dynamo as d; print('attnpass' in d.list_backends())")
    assert found.strip() == "True"
    shown = subprocess.run(
        [str(Path(sys.executable).parent / "attnpass"), "--version"],
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0 and "0.1.0" in shown.stdout


def test_the_hub_package_named_kernels_is_not_shadowed():
    code = (
        "import attnpass.kernels.tile, importlib.util, json;"
        "spec = importlib.util.find_spec('kernels');"
        "print(json.dumps(spec.origin if spec else None))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    origin = json.loads(done.stdout)
    assert origin is None or str(ROOT) not in origin


def test_wheel_holds_everything_and_nothing_else(tmp_path):
    source = tmp_path / "source"
    skipped = shutil.ignore_patterns(".venv", ".git", "build", "*.egg-info", "demo")
    shutil.copytree(ROOT, source, symlinks=True, ignore=skipped)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    done = subprocess.run([*command, "-w", str(tmp_path), str(source)], capture_output=True)
    assert done.returncode == 0, done.stderr
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    packages = {n for n in names if ".dist-info/" not in n}
    expected = {f"attnpass/{p.name}" for p in (ROOT / "attnpass").glob("*.py")}
    for folder in ("kernels", "tuner"):
        expected |= {f"attnpass/{folder}/{p.name}" for p in (ROOT / folder).glob("*.py")}
    sources = [p for kind in ("cpp", "h") for p in (ROOT / "kernels").glob(f"*.{kind}")]
    expected |= {f"attnpass/kernels/{p.name}" for p in sources}
    assert len(sources) == 4
    assert packages == expected | {"attnpass/py.typed", "attnpass/tuner/digits.safetensors"}
