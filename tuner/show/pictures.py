"""Results as pictures for people; decides nothing. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnpass.errors import MissingDependencyError, PlanError


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


def cka_picture(found: Mapping[str, Any], path: Path) -> Path:
    """Both matrices as a PNG; what SkipAt may leave out is marked.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        PlanError: the file cannot be written.
    """
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 5), dpi=120)
    for axis, which in zip(axes, ("Z", "A"), strict=True):
        values = [[float("nan") if x is None else x for x in row] for row in found[which]]
        image = axis.imshow(values, vmin=0, vmax=1, cmap="viridis")
        axis.set_title(f"CKA of {which}"), axis.set_xlabel("layer"), axis.set_ylabel("layer")
        for i, name in enumerate(found["sites"]):
            if name in found["suggested"]:
                axis.plot(i, i, "rs", markersize=5, fillstyle="none")
        figure.colorbar(image, ax=axis, fraction=0.045)
    figure.tight_layout()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise PlanError(
            f"expected to write the picture to {path}, got: {error}; choose another file"
        ) from error
    finally:
        pyplot.close(figure)
    return path


def picture(result: Mapping[str, Any], path: Path) -> Path:
    """The front as a PNG: speed-up against held-out score, both with their intervals.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        PlanError: the file cannot be written.
    """
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 5), dpi=120)
    rows = [r for r in result["front"] if r["held_out"] and r["latency"].get("ratio")]
    for row in rows:
        r, h = row["latency"]["ratio"], row["held_out"]
        color = "tab:green" if row["plan"] == result["best"] else "tab:blue"
        axes.errorbar(
            r["median"],
            -100 * h["drop"],
            fmt="o",
            color=color,
            capsize=3,
            xerr=[[r["median"] - r["low"]], [r["high"] - r["median"]]],
            yerr=[[100 * (h["upper"] - h["drop"])], [0]],
        )
        axes.annotate(
            row["plan"][:6],
            (r["median"], -100 * h["drop"]),
            fontsize=8,
            xytext=(4, 4),
            textcoords="offset points",
        )
    axes.plot([1], [0], "ks", label="baseline: compiled, softmax")
    axes.axhline(
        -100 * result["settings"]["max_drop"], color="tab:red", ls="--", label="allowed drop"
    )
    axes.axvline(
        result["facts"]["ceiling"],
        color="gray",
        ls=":",
        label="ceiling: attention free, projections kept",
    )
    axes.set_xlabel("speed-up over the compiled baseline (95 % interval)")
    axes.set_ylabel(f"change of {result['metric']}, held out, points (bar: bound)")
    axes.set_title(f"{result['task']}, run {result['run']}")
    axes.legend(loc="lower left", fontsize=8)
    figure.tight_layout()
    try:
        figure.savefig(path)
    except OSError as error:
        raise PlanError(f"expected to write {path}, got {error.strerror}") from error
    finally:
        pyplot.close(figure)
    return path
