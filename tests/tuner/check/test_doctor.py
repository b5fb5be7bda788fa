"""The environment: parts that are there, and the cure for those that are missing."""

from __future__ import annotations

import torch

from attnpass.tuner.check import doctor
from attnpass.tuner.check.doctor import examine


def test_it_says_what_is_there(tmp_path):
    rows = {r.what: r for r in examine(str(tmp_path / "a.db"))}
    assert rows["torch"].found == torch.__version__
    assert rows["database"].ok and "(0 runs)" in rows["database"].found
    assert list(rows["GPU"].as_dict()) == ["what", "found", "ok", "needed", "cure"]
    assert rows["GPU"].ok == torch.cuda.is_available() and not rows["GPU"].needed


def test_it_says_what_is_missing_and_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor.launch, "refusal", lambda name: "no AVX-512")
    (tmp_path / "a.db").write_text("not a database, and long enough to be taken for one" * 20)
    rows = {r.what: r for r in examine(str(tmp_path / "a.db"))}
    missing = {name for name, row in rows.items() if not row.ok}
    assert {"C++ compiler", "C++ kernels", "triton (GPU kernels)", "database"} <= missing
    assert {n for n in missing if rows[n].needed} == {"C++ compiler", "database"}
    assert rows["sklearn (digits task)"].cure == "pip install attnpass[demo]"
    assert rows["C++ kernels"].found == "no AVX-512"
