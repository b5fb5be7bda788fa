"""A changed byte of a source is a miss of all that it decides, and of nothing else."""

from __future__ import annotations

import shutil

import house
import pytest

from attnpass.fingerprint import kernels_digest, recovery_digest
from attnpass.fingerprint.sources import KERNELS, PACKAGE, RECOVERY, SUFFIXES, sources_digest


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the package's sources, the linked folders as folders."""
    target = tmp_path_factory.mktemp("copied") / "attnpass"
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__", "tuner"))
    return target


def sources(*folders):
    return sorted(
        path.relative_to(PACKAGE).as_posix()
        for folder in folders
        for path in (PACKAGE / folder).rglob("*")
        if path.suffix in SUFFIXES
    )


def digests(package):
    return sources_digest(package, KERNELS), sources_digest(package, RECOVERY)


def changed(package, name):
    """Whether the digests of kernels and of recovery change with one byte of a file."""
    before, text = digests(package), (package / name).read_bytes()
    (package / name).write_bytes(text + b"\n")
    try:
        return tuple(a != b for a, b in zip(before, digests(package), strict=True))
    finally:
        (package / name).write_bytes(text)


def test_the_copy_and_the_package_have_the_same_digests(package):
    assert house.ROOT / "attnpass" == PACKAGE
    assert digests(package) == (kernels_digest(), recovery_digest())


def test_the_sources_are_found():
    """The tests below would pass on empty folders."""
    found = sources("kernels", "forms")
    for folder, suffix in (("cpu", ".cpp"), ("cpu", ".h"), ("cpu", ".py"), ("gpu", ".py")):
        assert any(x.startswith(f"kernels/{folder}/") and x.endswith(suffix) for x in found)
    assert "forms/pointwise.py" in found and len(sources("recover")) > 5


@pytest.mark.parametrize("name", sources("kernels", "forms"))
def test_kernels_and_forms_decide_measurements(name, package):
    assert changed(package, name) == (True, False)


@pytest.mark.parametrize("name", [*sources("recover", "rewrite"), "plan/delta.py"])
def test_recovery_decides_what_was_learnt(name, package):
    assert changed(package, name) == (False, True)


@pytest.mark.parametrize("name", ["plan/plan.py", "report.py", "matching/masks.py"])
def test_other_sources_decide_neither(name, package):
    assert changed(package, name) == (False, False)


def test_a_file_that_moves_is_a_change(package):
    before = digests(package)
    (package / "forms" / "hydra.py").rename(package / "forms" / "other.py")
    assert digests(package)[0] != before[0]
    (package / "forms" / "other.py").rename(package / "forms" / "hydra.py")


def test_files_that_are_no_sources_do_not_count(package):
    before = digests(package)
    for name in ("kernels/cpu/built.so", "kernels/notes.md"):
        (package / name).write_text("x")
    assert digests(package) == before


def test_a_place_without_sources_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected sources at .*kernels, found none"):
        sources_digest(tmp_path, ("kernels",))
