"""Every way to install the package gives all of it: wheel, sdist, zip of the tree, editable."""

from __future__ import annotations

import os
import platform
import shutil
import stat
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import house
import pytest

from attnpass.kernels.cpu import build

pytestmark = pytest.mark.slow  # installs the package four times and imports each result

SKIPPED = shutil.ignore_patterns(
    *(".venv", ".git", "build", "dist", "*.egg-info", "demo", "__pycache__"),
    *(".mypy_cache", ".ruff_cache", ".pytest_cache", "results"),
)
PIP = ("-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index")
PIP = (*PIP, "--disable-pip-version-check")

USE = """
from pathlib import Path

import attnpass, attnpass.kernels.ops, attnpass.tuner.cli
from attnpass.kernels.cpu import launch
from attnpass.tuner import digits

print(Path(attnpass.__file__).parent)
beside = Path(launch.__file__).parent.iterdir()
print(*sorted(p.name for p in beside if p.suffix in (".cpp", ".h")))
print(sum(p.numel() for p in digits.task().model.parameters()))
"""
"""Prints where the package is, the C++ sources beside their launcher, and the built-in model's
size (its checkpoint is read)."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree: builds write beside their sources."""
    return Path(
        shutil.copytree(
            house.ROOT,
            tmp_path_factory.mktemp("source") / "attnpass",
            symlinks=True,
            ignore=SKIPPED,
        )
    )


def run(*command: str | Path, at: Path, path: Path | None = None) -> str:
    """What a command prints, run from ``at`` with ``path`` first on Python's path."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [str(c) for c in command], cwd=at, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(python: str | Path, home: Path, at: Path, path: Path | None = None) -> None:
    """The package that ``python`` imports from another folder is whole and lies at ``home``."""
    where, sources, size = run(python, "-c", USE, at=at, path=path).splitlines()
    assert Path(where).resolve() == home.resolve()
    own = [p.name for kind in ("cpp", "h") for p in house.ROOT.glob(f"kernels/cpu/*.{kind}")]
    assert sources.split() == sorted(own)
    assert int(size) > 1e5
    version = run(python, "-m", "attnpass.tuner.cli", "--version", at=at, path=path)
    assert "0.1.0" in version


def zipped(tree: Path, to: Path) -> Path:
    """The tree as a zip file, links stored as links, as hosts of repositories make it."""
    with zipfile.ZipFile(to, "w") as out:
        for path in sorted(tree.rglob("*")):
            name = f"{tree.name}/{path.relative_to(tree)}"
            if path.is_symlink():
                entry = zipfile.ZipInfo(name)
                entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
                out.writestr(entry, os.readlink(path))
            elif path.is_file():
                out.write(path, name)
    return to


SDIST = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
WHEEL = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"

BINARY_WHEEL = f"""
import sys
from setuptools.build_meta import build_wheel

build_wheel(sys.argv[1], {{"--build-option": "--plat-name=linux_{platform.machine()}"}})
"""


@pytest.mark.parametrize("kind", ["wheel", "sdist", "zip"])
def test_installed_from_an_archive(kind: str, tree: Path, tmp_path: Path) -> None:
    built, target, elsewhere = (tmp_path / x for x in ("built", "target", "elsewhere"))
    built.mkdir()
    elsewhere.mkdir()
    if kind == "zip":
        archive = zipped(tree, built / "attnpass.zip")
    else:
        run(sys.executable, "-c", WHEEL if kind == "wheel" else SDIST, built, at=tree)
        (archive,) = built.iterdir()
    run(sys.executable, *PIP, "--target", target, archive, at=elsewhere)
    check(sys.executable, target / "attnpass", elsewhere, target)
    (info,) = target.glob("attnpass-*.dist-info")
    assert (info / "licenses" / "LICENSE").read_text() == (house.ROOT / "LICENSE").read_text()


KERNELS = """
import torch
from attnpass.kernels.cpu import build, launch
from attnpass.kernels import ops

for name in build.PARTS:
    assert launch.refusal(name) is None, launch.refusal(name)
q = torch.randn(1, 2, 80, 16)
out = ops.softmax(q, q, q, None, None, 0.25, False, [128, 256, 4, 2, 1], [128, 256, 4, 2, 1])[0]
want = torch.nn.functional.scaled_dot_product_attention(q, q, q, scale=0.25)
torch.testing.assert_close(out, want)
print(build.library("pointwise", build.instruction_set()))
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles")
def test_a_wheel_with_kernels_needs_no_compiler(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `make wheel` does, for the instruction set of this machine alone."""
    here = build.instruction_set()
    inside = tree / "kernels" / "cpu" / "built"
    inside.mkdir()
    for name in build.PARTS:
        shutil.copy(build.library(name, here), inside)
    built, target, elsewhere = (tmp_path / x for x in ("built", "target", "elsewhere"))
    built.mkdir()
    elsewhere.mkdir()
    run(sys.executable, "-c", BINARY_WHEEL, built, at=tree)
    shutil.rmtree(inside)
    (archive,) = built.iterdir()
    assert archive.name.endswith(f"-py3-none-linux_{platform.machine()}.whl")
    run(sys.executable, *PIP, "--target", target, archive, at=elsewhere)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing"))
    found = Path(run(sys.executable, "-c", KERNELS, at=elsewhere, path=target).strip())
    assert found.parent == target / "attnpass" / "kernels" / "cpu" / "built"


def test_installed_editable(tree: Path, tmp_path: Path) -> None:
    """In an environment of its own, which sees this one's packages but not its attnpass."""
    made, elsewhere = tmp_path / "venv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", made, at=tmp_path)
    python = made / "bin" / "python"
    (own,) = made.glob("lib/python*/site-packages")
    # a path in a .pth file is added without the .pth files that lie there
    (own / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    run(python, *PIP, "--editable", tree, at=elsewhere)
    check(python, tree / "attnpass", elsewhere)
    source = tree / "attnpass" / "seeds.py"
    source.write_text(source.read_text() + "\nMARK = 7\n")
    assert run(python, "-c", "from attnpass.seeds import MARK; print(MARK)", at=elsewhere) == "7\n"
    script = made / "bin" / "attnpass"
    assert "0.1.0" in run(script, "--version", at=elsewhere)
