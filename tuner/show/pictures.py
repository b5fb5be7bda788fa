"""Results as pictures for people; decides nothing. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnpass.errors import MissingDependencyError, OutputError
from attnpass.files import reason, replace_file
from attnpass.text import printable
from attnpass.tuner.search import LOSSLESS, PlanRow, RunResult

if TYPE_CHECKING:
    from attnpass.tuner.check import Similarities


def _pyplot() -> Any:
    """Matplotlib without a screen.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError(
            "the picture needs matplotlib, which is not installed; pip install 'attnpass[plots]'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw_similarities(found: Similarities, path: Path) -> Path:
    """Both matrices as a PNG; the layers that SkipAt may leave out are marked.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 5), dpi=120)
    pairs = (("Z", found.outputs), ("A", found.attention))
    for axis, (name, matrix) in zip(axes, pairs, strict=True):
        values = [[float("nan") if x is None else x for x in row] for row in matrix]
        image = axis.imshow(values, vmin=0, vmax=1, cmap="viridis")
        axis.set_title(f"CKA of {name}"), axis.set_xlabel("layer"), axis.set_ylabel("layer")
        for i, site in enumerate(found.sites):
            if site in found.suggested:
                axis.plot(i, i, "rs", markersize=5, fillstyle="none")
        figure.colorbar(image, ax=axis, fraction=0.045)
    figure.tight_layout()
    return _saved(figure, path)


def _saved(figure: Any, path: Path) -> Path:
    """The figure as a file of the kind that its ending says, written whole.

    Raises:
        OutputError: the file cannot be written, or the ending is of no picture.
    """
    kind = path.suffix.removeprefix(".") or "png"
    try:
        replace_file(path, lambda half: figure.savefig(half, format=kind))
    except (OSError, ValueError) as error:
        raise OutputError(
            f"expected to write the picture to {path}, got: {reason(error)}; choose another file"
        ) from error
    finally:
        _pyplot().close(figure)
    return path


def draw_front(result: RunResult, path: Path) -> Path:
    """The front as a PNG: speed-up against held-out score, both with their intervals.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 5), dpi=120)
    for row in result.front:
        _plot(axes, row, "tab:green" if row.plan == result.best else "tab:blue")
    axes.plot([1], [0], "ks", label="baseline: compiled, softmax")
    axes.axhline(-100 * result.max_drop, color="tab:red", ls="--", label="allowed drop")
    if result.facts.ceiling is not None:
        label, gain = "ceiling: attention free, projections kept", 1.0
        if result.facts.baseline == LOSSLESS and result.facts.softmax_ratio is not None:
            gain = result.facts.softmax_ratio.median
            axes.plot([gain], [0], "kD", label="lossless: softmax by the kernels")
        axes.axvline(gain * result.facts.ceiling, color="gray", ls=":", label=label)
    axes.set_xlabel("speed-up over the compiled baseline (95 % interval)")
    # names are no formulas, whatever dollar signs they hold
    label = printable(f"change of {result.metric}, held out, points (bar: bound)")
    axes.set_ylabel(label, parse_math=False)
    axes.set_title(printable(f"{result.task}, run {result.run}"), parse_math=False)
    axes.legend(loc="lower left", fontsize=8)
    figure.tight_layout()
    return _saved(figure, path)


def _plot(axes: Any, row: PlanRow, color: str) -> None:
    """One plan that was measured and judged: a point with its intervals and its name."""
    if row.latency is None or row.held_out is None:
        return
    r, h = row.latency.ratio, row.held_out
    point = (r.median, -100 * h.drop)
    axes.errorbar(
        *point,
        fmt="o",
        color=color,
        capsize=3,
        xerr=[[r.median - r.low], [r.high - r.median]],
        yerr=[[100 * (h.upper - h.drop)], [0]],
    )
    offset = {"xytext": (4, 4), "textcoords": "offset points"}
    axes.annotate(row.plan[:6], point, fontsize=8, **offset)
