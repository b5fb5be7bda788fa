"""Plans move between files and databases, and are pinned."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import torch
from tuning import TINY, run

from attnpass import Plan
from attnpass.store import Store
from attnpass.task import load_task


def test_pin_applies_unpin_removes(stored):
    db, _, name = stored
    assert json.loads(run("pin", name, "--json", db=db).stdout) == {"pinned": name}
    code = (
        "import torch, attnpass, logging, sys; logging.basicConfig(stream=sys.stderr);"
        f"task = attnpass.load_task({TINY!r});"
        "fast = torch.compile(task.model, backend='attnpass', options={'inner': 'eager'});"
        "fast(*task.example); r = attnpass.compiled_report(); print(r.plan, len(r.rewritten))"
    )
    env = {**os.environ, "ATTNPASS_DB": str(db)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert ran.stdout.split() == [name, "2"], ran.stderr
    assert f"applying pinned plan {name}" in ran.stderr
    assert run("unpin", name, db=db).returncode == 0
    assert run("unpin", name, db=db).returncode == 1
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert name not in ran.stdout and "pinned" not in ran.stderr


def test_pinned_plan_is_not_applied_to_other_weights(stored, monkeypatch, caplog):
    db, _, name = stored
    with Store(db) as store:
        store.pin(store.plan(name))
    monkeypatch.setenv("ATTNPASS_DB", str(db))
    import attnpass

    task = load_task(TINY)
    with torch.no_grad():
        next(task.model.blocks[0].attn.qkv.parameters()).add_(1.0)
    attnpass.reset_report()
    fast = torch.compile(task.model, backend="attnpass", options={"inner": "eager"})
    with torch.no_grad():
        out = fast(*task.example)
        torch.testing.assert_close(out, task.model(*task.example))
    assert set(attnpass.compiled_report().rewritten.values()) <= {"softmax"}  # the lossless plan
    assert "other weights; not applied" in caplog.text
    with Store(db) as store:
        store.unpin(store.plan(name))


def test_export_import_show_verify(stored, tmp_path):
    db, _, name = stored
    out = tmp_path / "sub" / "p.json"
    assert run("export", name, str(out), db=db).returncode == 0
    assert Plan.load(out).hash == name
    fresh = tmp_path / "b.db"
    assert json.loads(run("import", str(out), "--json", db=fresh).stdout) == {"plan": name}
    shown = json.loads(run("show", name, "--json", db=fresh).stdout)
    assert shown["sites"]["blocks.1.attn"]["form"] == "hydra"
    checked = run("verify", str(out), TINY, "--json", db=fresh)
    data = json.loads(checked.stdout)
    assert checked.returncode == 0, checked.stderr
    assert data["problems"] == [] and data["items"] == 60 and len(data["rewritten"]) == 2
