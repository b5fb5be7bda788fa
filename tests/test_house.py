"""Who may import whom, what an import costs, and how the package is put together."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import house
import pytest

ROOT = house.ROOT
HEAVY = ("triton", "optuna", "sqlite_utils", "rich", "scipy", "safetensors", "click", "matplotlib")
HEAVY = (*HEAVY, "platformdirs", "sklearn")


def test_every_module_is_in_a_room_of_the_table():
    outside = [n for n in house.modules() if n and not house.room(n)]
    assert outside in ([], ["tuner"])


@pytest.mark.parametrize("name", sorted(house.modules()))
def test_arrows(name):
    for module, own, other, target in house.arrows():
        if module == name:
            if own in house.TUNER:
                assert other in house.ARROWS or other in house.TUNER[own], f"imports {target}"
            else:
                assert other in house.ROOMS[own], f"imports {target}"


def test_every_arrow_of_the_table_is_there():
    drawn = {(own, other) for _, own, other, _ in house.arrows()}
    for own, targets in house.ROOMS.items():
        assert all((own, other) in drawn for other in targets), own


def test_there_is_no_circle():
    """Neither among rooms nor among modules, imports in functions counted."""
    waiting = {name: set(targets) for name, targets in house.ROOMS.items()}
    waiting |= {"kernels": set(house.KERNELS)}
    found = house.modules()
    among = {n: set() for n in found}
    for name, path in found.items():
        for target in house.imports(path):
            inside = target.removeprefix("attnpass.")
            known = inside if inside in found else inside.rpartition(".")[0]
            among[name] |= {known} & found.keys() - {name}
    del among[""]  # the front, which loads what is asked for
    for graph in (waiting, among):
        while graph:
            free = [
                n for n, to in graph.items() if not to & graph.keys() - house.LATER.get(n, set())
            ]
            assert free, f"a circle among {', '.join(graph)}"
            for name in free:
                del graph[name]


def test_the_page_of_rooms_is_current():
    """``python -m tests.house --write`` makes it so."""
    assert house.page() in house.PAGE.read_text()


def test_the_picture_leaves_out_what_a_longer_way_implies():
    drawn = {("a", "b"), ("b", "c"), ("a", "c"), ("d", "c")}
    assert house._reaches("a", "c", drawn - {("a", "c")})
    assert not house._reaches("a", "b", drawn - {("a", "b")})


def test_imports_across_rooms_go_to_doors():
    doors = {n: p for n, p in house.modules().items() if p.stem == "__init__" and n}
    for name, own, _, target in house.arrows():
        door, _, rest = target.rpartition(".")
        room = house.room(target)
        if room in doors:
            if target == room:
                continue
            public = importlib.import_module(f"attnpass.{room}").__all__
            assert door == room and rest in public, f"{name} ({own}) imports {target}"


TRITON = {
    f"kernels.gpu.{x}"
    for x in (
        *("pointwise_triton", "pointwise_backward_triton", "hydra_triton"),
        *("launch", "pointwise_triton_launch"),
    )
}


@pytest.mark.parametrize(
    ("package", "files"),
    [
        ("triton", TRITON),
        ("optuna", {"tuner.search.optuna_search", "tuner.tiles.study", "tuner.track.study"}),
        ("mlflow", {"tuner.track.mlflow_run"}),
        ("sqlite_utils", {"store.database"}),
        ("sqlite3", {"store.database"}),
    ],
)
def test_a_package_is_imported_in_its_own_files_alone(package, files):
    users = {
        n
        for n, p in house.modules().items()
        if any(t.split(".")[0] == package for t in house.imports(p))
    }
    assert users == files


def test_the_oracle_is_imported_by_no_fast_path():
    users = [
        n
        for n, p in house.modules().items()
        if any("kernels.reference" in t for t in house.imports(p))
    ]
    # which checks candidates, and computes nothing for a user
    assert users == ["tuner.tiles.attention_call"]


def test_every_module_has_a_namesake_among_the_tests():
    """``tests/matching/test_masks.py`` for ``matching/masks.py``, and so on."""
    missing = []
    for name, path in house.modules().items():
        *rooms, module = name.split(".")
        if path.stem not in ("__init__", "__main__"):
            test = ROOT.joinpath("tests", *rooms, f"test_{module}.py")
            missing += [] if test.exists() else [str(test.relative_to(ROOT))]
    assert missing == []


def test_the_two_linked_folders_have_no_init():
    for folder in ("kernels", "tuner"):
        assert not (ROOT / folder / "__init__.py").exists()
        assert (ROOT / "attnpass" / folder).is_symlink()


def test_every_package_is_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    doors = {n for n, p in house.modules().items() if p.stem == "__init__"}
    expected = {f"attnpass.{n}".rstrip(".") for n in doors} | {
        "attnpass.kernels",
        "attnpass.tuner",
    }
    assert set(listed) == expected


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
    links = [p for n, p in house.modules().items() if n.split(".")[0] in ("kernels", "tuner")]
    own = [p for p in house.modules().values() if p not in links]
    expected = {str(p.relative_to(ROOT)) for p in own}
    expected |= {f"attnpass/{p.relative_to(ROOT)}" for p in links}
    sources = [p for kind in ("cpp", "h") for p in (ROOT / "kernels").rglob(f"*.{kind}")]
    expected |= {f"attnpass/{p.relative_to(ROOT)}" for p in sources}
    assert sources
    others = {
        "py.typed",
        "tuner/digits.safetensors",
        "tuner/show/report.css",
        "tuner/show/report.js",
    }
    assert packages == expected | {f"attnpass/{name}" for name in others}
