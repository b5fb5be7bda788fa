"""Which tests ``make check`` runs after which change."""

import subprocess

import changed
import house
import pytest


@pytest.mark.parametrize(
    ("path", "room"),
    [
        ("attnpass/matching/masks.py", "matching"),
        ("attnpass/matching/__init__.py", "matching"),
        ("attnpass/site.py", "site"),
        ("kernels/cpu/launch.py", "kernels.cpu"),
        ("kernels/cpu/pointwise.cpp", "kernels.cpu"),
        ("kernels/tile.py", "kernels.tile"),
        ("tuner/search/run.py", "tuner.search"),
        ("tests/matching/test_masks.py", "matching"),
        ("tests/test_backend.py", "backend"),
        ("tests/models/cases.py", ""),
        ("README.md", ""),
        ("benchmarks/tune.py", ""),
    ],
)
def test_a_file_belongs_to_a_room(path, room):
    assert changed.room_of(path) == room


def test_rooms_that_import_a_room_are_found_in_the_table():
    assert changed.importers("rewrite") >= {"capture", "compiled"}
    assert "kernels.select" in changed.importers("kernels.tile")
    assert "forms" in changed.importers("kernels.tile")  # which sees the kernels as one room
    assert changed.importers("backend") == set()


def test_a_room_runs_with_the_rooms_behind_it(monkeypatch):
    monkeypatch.setattr(changed, "importers", lambda room: {"capture"})
    found = changed.chosen(["attnpass/rewrite/branch.py"])
    assert found == ["tests/capture", "tests/rewrite", "tests/test_house.py"]


def test_a_room_that_many_import_runs_alone():
    assert len(changed.importers("matching")) > changed.MOST
    found = changed.chosen(["attnpass/matching/masks.py", "docs/matching.md"])
    assert found == ["tests/matching", "tests/test_house.py"]


def test_nothing_or_too_much_runs_a_quick_selection():
    quick = changed.chosen([])
    assert quick and set(quick) <= set(changed.QUICK)
    many = [f"attnpass/{x}.py" for x in ("site", "errors", "files", "seeds", "store", "report")]
    assert changed.chosen(many) == changed.chosen(["README.md"]) == quick


def test_every_path_exists():
    for path in changed.chosen([]):
        assert (house.ROOT / path).exists()
    for room in ("matching", "graph", "rewrite", "capture", "compiled", "backend"):
        assert all((house.ROOT / path).exists() for path in changed.tests_of(room))
        assert changed.tests_of(room), room


def test_a_test_of_no_room_runs_itself():
    found = changed.chosen(["attnpass/backend.py", "tests/test_changed.py"])
    assert "tests/test_changed.py" in found and "tests/test_backend.py" in found


def git(root, *arguments):
    own = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", "-C", root, *own, *arguments], check=True, capture_output=True)


def test_changes_are_those_of_the_last_commit_and_of_the_working_tree(tmp_path):
    assert changed.changed_files(tmp_path) == []  # no repository
    git(tmp_path, "init", "-q")
    for i, name in enumerate(("first", "second", "third")):
        (tmp_path / f"{name}.py").write_text("x = 1\n")
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "-qm", name)
        assert changed.changed_files(tmp_path) == ([f"{name}.py"] if i else [])
    (tmp_path / "first.py").write_text("x = 2\n")
    (tmp_path / "new.py").write_text("x = 2\n")
    assert changed.changed_files(tmp_path) == ["first.py", "new.py", "third.py"]


def test_changes_are_counted_from_where_the_upstream_branch_was_left(tmp_path):
    git(tmp_path, "init", "-q", "-b", "main")
    for name in ("first", "second", "third"):
        (tmp_path / f"{name}.py").write_text("x = 1\n")
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "-qm", name)
        if name == "first":
            git(tmp_path, "branch", "-q", "base")
    git(tmp_path, "branch", "-q", "--set-upstream-to", "base")
    assert changed.changed_files(tmp_path) == ["second.py", "third.py"]
