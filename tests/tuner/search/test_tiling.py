"""The first stage of a run: tiles for what its plans may use."""

from __future__ import annotations

import pytest
from tuning import opened

from attnpass.errors import MeasureError
from attnpass.kernels.tile import Tile
from attnpass.store import Store
from attnpass.tuner import tiles
from attnpass.tuner.search.tiling import functions, tune_tiles


def test_tiles_are_for_the_functions_of_the_menu(tmp_path):
    with Store(tmp_path / "a.db") as store:
        for forms, want in (
            (("hydra",), ["softmax"]),
            (("usual",), ["softmax", "sigmoid", "relu"]),
            (("gelu", "relu alpha=0.5"), ["softmax", "gelu", "relu"]),
        ):
            inspection, _ = opened(store, forms=forms)
            assert functions(inspection) == want


def test_latencies_are_those_of_the_tiles_that_were_found(tmp_path, monkeypatch):
    asked = []

    def tune(shapes, store, progress, **more):
        asked.append(([str(x.kind) for x in shapes], more))
        store.put_tile("a class", shapes_context(store), Tile(), {})

    def shapes_context(store):
        from attnpass import environment

        return environment.kernel_context()

    monkeypatch.setattr(tiles, "tune", tune)
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store, forms=("relu",), tiles=3, objective="train")
        found = tune_tiles(inspection, session)
        assert found.timing != inspection.timing and found.run == inspection.run
        ((kinds, more),) = asked
        assert more["trials"] == 3 and more["left"]() > 0
        assert {k.split()[1] for k in kinds} == {"forward", "backward"}, "a training step has both"
        inspection, session = opened(store, tiles=0)
        assert tune_tiles(inspection, session) is inspection and len(asked) == 1


def test_a_study_that_fails_ends_no_run_and_a_request_to_stop_does(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise MeasureError("expected the GPU to survive")

    def runs(*_, left, **__):
        left()

    monkeypatch.setattr(tiles, "tune", fails)
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store, tiles=3)
        assert tune_tiles(inspection, session).run == inspection.run
        monkeypatch.setattr(tiles, "tune", runs)
        session.stop.requested = True
        with pytest.raises(KeyboardInterrupt):
            tune_tiles(inspection, session)
