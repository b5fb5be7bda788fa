"""Large tensors of plans in files: shared, written whole, checked, streamed, and old rows."""

from __future__ import annotations

import errno
import json
import os
import resource
import sqlite3
from pathlib import Path

import forked
import pytest
import torch
from safetensors.torch import load_file, save

from attnpass import files as replaced
from attnpass.errors import PlanError, StoreError
from attnpass.plan import Delta, Entry, Plan
from attnpass.store import Store, pinned_plans
from attnpass.store.database import APPLICATION_ID, MIGRATIONS
from attnpass.store.tensor_files import SMALL, TensorFiles

WIDTH = 128
"""A delta of this width is just large enough for a file."""

assert WIDTH * WIDTH * 4 == SMALL


def plan_of(*numbers: float, width: int = WIDTH) -> Plan:
    """A plan with a delta per site, full of a number; the sites' own parameters are small."""
    names = [f"blocks.{i}.attn" for i in range(len(numbers))]
    plan = Plan({name: Entry("hydra", {}, {"kind": "self"}, "w") for name in names})
    for name, number in zip(names, numbers, strict=True):
        plan.values[name] = {"gain": torch.nn.Parameter(torch.full((4,), number))}
        delta = Delta(torch.Size([width, width]))
        torch.nn.init.constant_(delta.full, number)
        plan.deltas[name] = {f"{name}.qkv": delta}
    return plan


def same(a: Plan, b: Plan) -> bool:
    one, two = a.tensors(), b.tensors()
    return a.hash == b.hash and all(torch.equal(one[k], two[k]) for k in {*one, *two})


def row(path: Path, name: str) -> dict:
    with Store(path, read=True) as store:
        return store.named("plans", "hash", name)


def test_large_tensors_are_in_files_named_by_their_content(path):
    plan = plan_of(0.5, 0.25)
    with Store(path) as store:
        name = store.save_plan(plan)
        files = TensorFiles(path)
        assert files.folder == path.with_name("a.db.tensors") == store.files.folder
        assert same(store.plan(name), plan)
    stored = row(path, name)
    named = json.loads(stored["files"])
    assert stored["parameters"] is None and len(named) == 2
    assert sorted(p.stem for p in files.folder.iterdir()) == sorted(named)
    first = load_file(files.path(named[0]))
    assert set(first) == {"blocks.0.attn|gain", "blocks.0.attn|blocks.0.attn.qkv|full"}


def test_small_parameters_stay_in_the_row(path):
    plan = plan_of(0.5, 0.25, width=8)
    with Store(path) as store:
        name = store.save_plan(plan)
        assert same(store.plan(name), plan)
    stored = row(path, name)
    assert stored["files"] is None and len(stored["parameters"]) < SMALL
    assert not TensorFiles(path).folder.exists()


def test_many_small_sites_share_one_file(path):
    plan = plan_of(*(i / 100 for i in range(20)), width=WIDTH // 4)
    with Store(path) as store:
        name = store.save_plan(plan)
        assert same(store.plan(name), plan)
    assert len(json.loads(row(path, name)["files"])) == 1


def test_plans_share_the_pieces_that_they_have_in_common(path):
    with Store(path) as store:
        for numbers in ((0.5, 0.25), (0.5, 0.75), (0.125, 0.25), (0.5, 0.25)):
            store.save_plan(plan_of(*numbers))
        assert len(list(store.files.folder.iterdir())) == 4, "of six different pairs"


def test_a_plan_that_is_there_is_not_written_again(path, monkeypatch):
    with Store(path) as store:
        name = store.save_plan(plan_of(0.5))
        (file,) = store.files.folder.iterdir()
        os.utime(file, (0, 0))
        monkeypatch.setattr("attnpass.store.tensor_files.replace_file", None)
        assert store.save_plan(plan_of(0.5)) == name
        assert file.stat().st_mtime > 0, "it is in use again"


@pytest.mark.parametrize("damage", ["missing", "cut", "a bit", "another's"])
def test_a_damaged_file_is_one_line_and_saving_again_mends_it(path, damage):
    plan = plan_of(0.5)
    with Store(path) as store:
        store.pin(plan)
        name = store.save_plan(plan)
    (file,) = TensorFiles(path).folder.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[:-10])
    elif damage == "a bit":
        content[-5] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(save(plan_of(0.75).tensors()))
    with Store(path, read=True) as store, pytest.raises(PlanError) as told:
        store.plan(name)
    got = "no such file" if damage == "missing" else "a damaged file"
    assert f"expected the tensors of plan {name} in {file}, got {got}; import" in str(told.value)
    with pytest.raises(PlanError, match="expected the tensors of plan"):
        pinned_plans(path)
    with Store(path) as store:
        store.save_plan(plan)
        assert same(store.plan(name), plan)


@pytest.mark.parametrize("text", ["{", "3", "[1]", '["../a"]', "[]", '["' + "0" * 64 + '"]'])
def test_a_damaged_column_is_one_line(path, text):
    with Store(path) as store:
        name = store.save_plan(plan_of(0.5))
        with store.transaction():
            store.db.execute("UPDATE plans SET files = ?", [text])
        with pytest.raises(PlanError, match=f"of plan {name}|expected plan {name}"):
            store.plan(name)


def test_a_file_is_on_the_disk_before_its_row(path, monkeypatch):
    seen, sync = [], replaced._sync

    def waits(place):
        sync(place)
        seen.append((place.is_dir(), store.db.table("plans").count))

    monkeypatch.setattr(replaced, "_sync", waits)
    with Store(path) as store:
        store.save_plan(plan_of(0.5))
    assert seen == [(False, 0), (True, 0)], "the content, then the name"


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_one_line_and_loses_nothing(path, monkeypatch):
    first, second = plan_of(0.5), plan_of(0.5, 0.25, 0.125)
    with Store(path) as store:
        name = store.save_plan(first)
        store.put("accuracy", "p", {}, {"x": 1})
        before, left = sorted(store.files.folder.iterdir()), [1]
        sync = replaced._sync

        def fails(place):
            # the second of the new files does not fit any more
            sync(place) if left.pop(0) else full_disk()
            left.append(len(list(store.files.folder.glob("*.safetensors"))) < 2)

        monkeypatch.setattr(replaced, "_sync", fails)
        with pytest.raises(StoreError) as told:
            store.save_plan(second)
        monkeypatch.undo()
        text = str(told.value)
        assert "No space left on device; free some space there (attnpass gc)" in text
        assert text.startswith("expected to write 65,552 bytes of a plan's tensors to ")
        assert sorted(store.files.folder.iterdir()) == before, "what did not fit is gone"
        assert same(store.plan(name), first) and store.plan(second.hash) is None
        assert store.get("accuracy", "p", {})[0] is not None
        store.save_plan(second)
        assert same(store.plan(second.hash), second)


def test_a_limit_of_the_system_while_writing_is_one_line(path):
    """A real failure in the middle of a file, by the largest size that a process may write."""
    with Store(path) as store:
        name = store.save_plan(plan_of(0.5))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, before[1]))
        try:
            with pytest.raises(StoreError, match=r"of a plan's tensors to .*, got .*too large"):
                store.save_plan(plan_of(0.5, width=512))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert len(list(store.files.folder.iterdir())) == 1
        assert same(store.plan(name), plan_of(0.5))


def test_files_that_went_while_a_plan_was_stored_are_written_again(path, monkeypatch):
    plan, once = plan_of(0.5), [True]
    with Store(path) as store:
        missing = store.files.missing

        def removed(names):
            if once.pop():
                once.append(False)
                for name in names:
                    store.files.path(name).unlink()
            else:
                once.append(False)
            return missing(names)

        monkeypatch.setattr(store.files, "missing", removed)
        assert same(store.plan(store.save_plan(plan)), plan)


# --- databases of released versions -------------------------------------------------------------


def older(path: Path, version: int, plans: list[Plan]) -> None:
    """A database as attnpass wrote it when it had so many migrations."""
    connection = sqlite3.connect(path)
    for script in MIGRATIONS[:version]:
        connection.executescript(script)
    connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version={version}")
    connection.execute("PRAGMA journal_mode=WAL")
    time = "2026-11-28T10:00:00Z"
    for plan in plans:
        document, tensors = json.dumps(plan.as_dict()), save(plan.tensors())
        columns = "INSERT INTO plans (hash, created, document, parameters) VALUES (?, ?, ?, ?)"
        connection.execute(columns, [plan.hash, time, document, tensors])
    connection.execute("INSERT INTO pins VALUES (?, ?, ?)", [plan.structure, time, plan.hash])
    columns = "INSERT INTO runs (id, created, task, status, settings, context, result)"
    given = ["{}", "{}", json.dumps({"task": "a.py:f", "best": plan.hash})]
    connection.execute(f"{columns} VALUES ('0123', ?, 'a.py:f', 'done', ?, ?, ?)", [time, *given])
    connection.commit()
    connection.close()


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
def test_a_database_of_each_released_version_is_read_and_brought_up(path, version):
    plans = [plan_of(0.5), plan_of(0.25, width=8)]
    older(path, version, plans)
    content = path.read_bytes()
    with Store(path, read=True) as store:
        assert store.version == version
        assert all(same(store.plan(p.hash), p) for p in plans)
        assert [p.hash for p in store.pinned()] == [plans[1].hash]
        assert [r["id"] for r in store.runs(task="a.py:f")] == ["0123"]
        assert store.runs(task="f") == [] and store.run("last")["result"]["best"]
    assert path.read_bytes() == content, "what only reads leaves it as it is"
    with Store(path) as store:
        assert store.version == len(MIGRATIONS)
        assert all(same(store.plan(p.hash), p) for p in plans)
        assert [p.hash for p in store.pinned()] == [plans[1].hash]
        assert store.run("01")["name"] is None
        store.save_plan(plans[0])
        assert same(store.plan(plans[0].hash), plans[0])
    stored = row(path, plans[0].hash)
    assert stored["parameters"] is None and stored["files"], "stored again, it is in files"


# --- memory -------------------------------------------------------------------------------------

MIB = 2**20


def peak() -> int:
    """The most bytes that this process ever held, those of mapped files too."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) * 1024


def resident() -> int:
    """The bytes that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def used(act, before=lambda: None) -> int:
    """The most bytes that an act takes in a process of its own, beside what was made before."""

    def measured():
        made = before()
        held = resident()
        act(made)
        print(peak() - held)

    ended = forked.run(measured, 120.0)
    assert ended.code == 0, ended.err
    return int(ended.out)


def test_saving_and_loading_hold_no_copies(path):
    """Beside tensors of 64 MiB less than the memory of one of them is used."""
    large, numbers = 64 * MIB, (0.5, 0.25, 0.125)

    def save_plan(plan):
        with Store(path) as store:
            store.save_plan(plan)

    def load_plan(_):
        with Store(path, read=True) as store:
            (row,) = store.db.query("SELECT hash FROM plans")
            assert len(store.plan(row["hash"]).deltas) == len(numbers)

    assert used(save_plan, lambda: plan_of(*numbers, width=4096)) < large
    assert used(load_plan) < large + len(numbers) * large, "the tensors and less than one more"
