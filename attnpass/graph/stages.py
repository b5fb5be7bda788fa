"""The stages of the pass, checked and shown: ``ATTNPASS_CHECK=1`` and ``ATTNPASS_DUMP=folder``.

After each stage (``normal_form``, ``matched``, ``rewritten``, ``traced``) the graph is checked for
what the stage promises, and written as text and as a picture. Both are off by default.
"""

from __future__ import annotations

import html
import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import fx

from attnpass.errors import CheckError

_number = itertools.count()


def checked() -> bool:
    """Whether each stage is to be checked."""
    return os.environ.get("ATTNPASS_CHECK") == "1"


def require(holds: bool, stage: str, promise: str, node: fx.Node | None = None) -> None:
    """Raise unless a promise of a stage holds.

    Raises:
        CheckError: it names the stage, the promise and the node.
    """
    if not holds:
        where = f" at {node.format_node()}" if node is not None else ""
        raise CheckError(f"expected after the stage {stage}: {promise}; it does not hold{where}")


def dump(stage: str, gm: fx.GraphModule, marks: Mapping[fx.Node, str] | None = None) -> None:
    """Write a graph as text and SVG where ``ATTNPASS_DUMP`` names a folder.

    ``marks`` says which node belongs to which region; regions are coloured in the picture.
    Files begin with the process and a number in the order of the stages:
    ``4711_0001_matched.txt``, ``4711_0001_matched.svg``.
    """
    folder = os.environ.get("ATTNPASS_DUMP")
    if not folder:
        return
    path = Path(folder) / f"{os.getpid()}_{next(_number):04}_{stage}"
    path.parent.mkdir(parents=True, exist_ok=True)
    marks = marks or {}
    path.with_suffix(".txt").write_text("\n".join(_lines(gm.graph, marks)) + "\n")
    path.with_suffix(".svg").write_text(_picture(gm.graph, marks))


def _lines(graph: fx.Graph, marks: Mapping[fx.Node, str]) -> Iterator[str]:
    """One line a node, its region in front."""
    for node in graph.nodes:
        text = node.format_node() or f"{node.op} {node.args}"
        yield f"{marks.get(node, ''):<24} {text}"


ROW, LEFT, WIDTH = 16, 150, 1100
"""Pixels: height of a node's row, room for arcs, width of the picture."""


def _picture(graph: fx.Graph, marks: Mapping[fx.Node, str]) -> str:
    """The nodes from top to bottom, an arc from each operand to its user, regions coloured."""
    row = {node: i for i, node in enumerate(graph.nodes)}
    regions = list(dict.fromkeys(marks.values()))
    height = ROW * (len(row) + 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
        ' font-family="monospace" font-size="11"><rect width="100%" height="100%" fill="white"/>'
    ]
    for node, i in row.items():
        y = ROW * (i + 1)
        if node in marks:
            hue = 360 * regions.index(marks[node]) // max(len(regions), 1)
            parts.append(
                f'<rect x="{LEFT - 4}" y="{y - 12}" width="{WIDTH - LEFT}" height="{ROW}"'
                f' fill="hsl({hue},80%,88%)"><title>{html.escape(marks[node])}</title></rect>'
            )
        for operand in node.all_input_nodes:
            y0 = ROW * (row[operand] + 1) - 4
            x = max(LEFT - 8 - (i - row[operand]) * 3, 4)
            parts.append(
                f'<path d="M{LEFT - 6},{y0} C{x},{y0} {x},{y - 4} {LEFT - 6},{y - 4}"'
                ' fill="none" stroke="#888" stroke-width="0.6"/>'
            )
        text = (node.format_node() or node.name)[:150]
        parts.append(f'<text x="{LEFT}" y="{y}">{html.escape(text)}</text>')
    return "\n".join([*parts, "</svg>\n"])
