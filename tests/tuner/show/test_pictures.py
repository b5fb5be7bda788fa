"""Pictures are PNG files, and say so where they cannot be written."""

from __future__ import annotations

import builtins

import pytest

from attnpass.errors import MissingDependencyError, OutputError
from attnpass.tuner.check import Similarities
from attnpass.tuner.measure import Bound, Ratio
from attnpass.tuner.search import PlanRow, RunResult
from attnpass.tuner.search.plan_row import PlanLatency
from attnpass.tuner.show.pictures import draw_front, draw_similarities

FOUND = Similarities("t", ["a", "b"], [[1.0, 0.9], [0.9, 1.0]], [[None, 0.1], [0.1, 1.0]], ["b"])
ROW = PlanRow(
    "cafe",
    {"a": "hydra"},
    1.0,
    held_out=Bound(9, 0.9, 0.01, 0.02, 0.95),
    latency=PlanLatency(1.0, Ratio(2.0, 1.9, 2.1, 9)),
)
RESULT = RunResult.from_dict(
    {"front": [ROW.as_dict(), {"plan": "unmeasured"}], "best": "cafe", "facts": {"ceiling": 2.5}}
)


@pytest.mark.parametrize(("draw", "value"), [(draw_front, RESULT), (draw_similarities, FOUND)])
def test_it_is_a_picture(draw, value, tmp_path):
    path = draw(value, tmp_path / "a.png")
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("draw", "value"), [(draw_front, RESULT), (draw_similarities, FOUND)])
def test_a_picture_that_cannot_be_written_says_so(draw, value, tmp_path):
    with pytest.raises(OutputError, match="expected to write"):
        draw(value, tmp_path / "none" / "a.png")


def test_without_matplotlib_it_says_how_to_get_it(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *given, **more):
        if name == "matplotlib":
            raise ImportError(name)
        return real(name, *given, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingDependencyError, match="pip install 'attnpass\\[plots\\]'"):
        draw_front(RESULT, tmp_path / "a.png")
