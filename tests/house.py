"""The rooms of the house, the arrows between them, and a picture of both.

A room is a top-level module or a package. ``python -m tests.house`` prints the table and the
picture; ``--write`` puts them into docs/architecture.md, which a test checks to be current.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms: begin -->", "<!-- rooms: end -->"

ARROWS: dict[str, dict[str, str]] = {
    "text": {},
    "console": {"text": "prints no character that a terminal obeys"},
    "errors": {"text": "a message is one printable line"},
    "site": {},
    "seeds": {},
    "memory": {},
    "files": {},
    "torch_internals": {},
    "graph": {"errors": "a stage that does not keep its promise"},
    "kernels": {"errors": "refuses a call that is not valid"},
    "batch": {"errors": "refuses arguments that are no batch"},
    "report": {
        "console": "prints names as they are",
        "site": "a report lists sites and declines",
    },
    "fingerprint": {
        "batch": "the items of a batch",
        "graph": "a graph's computation is part of a cache key",
    },
    "environment": {"fingerprint": "a measured tile depends on the kernel sources"},
    "matching": {
        "graph": "reads the normal form",
        "site": "yields sites and declines",
    },
    "forms": {
        "errors": "an option out of range",
        "kernels": "the implementations of the forms",
        "seeds": "a reproducible start of the parameters",
        "site": "a form is built for a site",
        "text": "a message shows a value",
    },
    "rewrite": {
        "forms": "how a form is called depends on its kind",
        "graph": "edits the normal form",
        "matching": "reads regions and recipes",
    },
    "plan": {
        "capture": "Plan.create and Plan.bind take a model; imported when called",
        "errors": "a plan that does not fit",
        "files": "a file is replaced whole",
        "fingerprint": "a plan's hash, a site's weights",
        "forms": "builds the module of an entry",
        "kernels": "a plan carries tiles",
        "site": "an entry fits a site",
        "text": "messages show names and values of a file",
    },
    "task": {
        "batch": "a task holds batches",
        "errors": "a task that is not usable",
        "fingerprint": "the digest of data and score",
        "text": "messages show values",
    },
    "store": {
        "errors": "a database that is not usable",
        "files": "a file of tensors is replaced whole",
        "fingerprint": "a file of tensors is named by its content",
        "kernels": "stores tiles",
        "plan": "stores plans",
        "text": "messages list names",
    },
    "capture": {
        "batch": "a capture is called with batches",
        "errors": "a model that cannot be captured",
        "fingerprint": "batches with the same content",
        "graph": "normalises Dynamo's graph",
        "matching": "finds the regions",
        "plan": "runs under a plan",
        "report": "explain and find_sites return one",
        "rewrite": "puts a plan's forms into a graph",
        "seeds": "a repeated run draws the same dropout",
        "site": "names the sites",
    },
    "compiled": {
        "environment": "the context in which tiles were measured",
        "errors": "options that are not known",
        "fingerprint": "a pinned plan is known by its weights",
        "forms": "checks a form's options",
        "graph": "normalises Dynamo's graph, and traces the rewritten one",
        "kernels": "tiles that were measured here",
        "matching": "finds the regions",
        "plan": "applies a plan",
        "report": "reports sites, rewrites and declines",
        "rewrite": "puts a plan's forms into a graph",
        "site": "declines",
        "store": "pinned plans and measured tiles; imported when needed",
        "text": "lists the sites that a graph passes over",
    },
    "recover": {
        "batch": "learns from batches",
        "memory": "how much of a batch is learned from at once",
        "capture": "runs the original and the converted model",
        "environment": "whether bfloat16 is quick here",
        "errors": "a loss that is not finite",
        "files": "a checkpoint is replaced whole",
        "fingerprint": "identifies the run of a checkpoint",
        "forms": "knows the parameters that it fits",
        "graph": "which nodes read a projection",
        "kernels": "the functions h, to solve for a shift",
        "matching": "a region's previous block",
        "plan": "trains a plan's parameters and deltas",
        "rewrite": "the branch of one site",
        "seeds": "the same run twice",
        "site": "which sites take softmax",
    },
    "backend": {
        "compiled": "compiles the graph",
        "errors": "raises the errors that the user can mend",
        "graph": "graphs that cannot be normalised",
        "matching": "whether a graph may hold attention at all",
        "report": "says that a graph was left unchanged",
        "site": "declines",
    },
}
"""Room -> the rooms it may import, each with the reason. The tuner may import everything, and
everybody ``torch_internals``: torch's private names are nobody's own."""

EVERYBODY = "torch_internals"

LATER = {"plan": {"capture"}, "plan.plan": {"capture"}, "capture.captured": {"capture.capture"}}
"""Room or module -> what it imports only when called (or for annotations): no circle at import.
Plan.create and Plan.bind take a model, and only a capture can read one."""

KERNELS: dict[str, dict[str, str]] = {
    "kernels.tile": {"errors": "refuses a size out of range"},
    "kernels.activations": {},
    "kernels.reference": {},
    "kernels.call": {"kernels.tile": "a call says with which tile it runs"},
    "kernels.check": {
        "errors": "refuses a call that is not valid",
        "kernels.activations": "the functions h that are known",
        "kernels.call": "takes a call",
    },
    "kernels.shapes": {"kernels.call": "writes a call's positions as a bias and a mask"},
    "kernels.torch_tiled": {
        "kernels.activations": "the functions h and their slopes",
        "kernels.call": "takes a call",
        "kernels.shapes": "the layout of results",
    },
    "kernels.torch_whole": {
        "kernels.activations": "the functions h",
        "kernels.call": "takes a call",
        "kernels.shapes": "grouped heads repeated, the causal mask",
    },
    "kernels.torch_softmax": {
        "kernels.call": "takes a call",
        "kernels.shapes": "the layout of results",
    },
    "kernels.cpu": {
        "errors": "says why the kernels cannot be compiled",
        "kernels.activations": "the C++ kernels number the functions h by their order",
        "kernels.call": "takes a call",
        "kernels.shapes": "the layout of results",
        "kernels.torch_softmax": "plain torch serves the calls that the C++ kernels refuse",
        "kernels.torch_tiled": "plain torch serves the calls that the C++ kernels refuse",
    },
    "kernels.gpu": {
        "errors": "refuses a tile that Triton cannot compile",
        "kernels.activations": "how a call of exact softmax is named",
        "kernels.call": "takes a call",
        "kernels.shapes": "the layout of results",
        "kernels.tile": "what a tile needs of a GPU",
    },
    "kernels.select": {
        "kernels.cpu": "whether the C++ kernels run here",
        "kernels.gpu": "whether the Triton kernels run here, and their default tiles",
        "kernels.tile": "yields a tile",
    },
    "kernels.dispatch": {
        "kernels.call": "hands a call on",
        "kernels.cpu": "the C++ kernels",
        "kernels.gpu": "the Triton kernels, and whether they run here",
        "kernels.torch_softmax": "softmax on a GPU",
    },
    "kernels.ops": {
        "kernels.activations": "what stands for softmax among the functions h",
        "kernels.check": "a call is valid, or it does not run",
        "kernels.call": "builds a call from an operator's flat arguments",
        "kernels.dispatch": "runs the call on its device",
        "kernels.shapes": "the layout of results",
        "kernels.tile": "reads the tile from an operator's list of numbers",
    },
}
"""The rooms of the numeric side, and which of each other they may import. Of the rest of ours
they import the errors alone: kernels know tensors, and never a graph, a plan or a database."""

TUNER: dict[str, dict[str, str]] = {
    "tuner.progress": {},
    "tuner.digits": {},
    "tuner.measure": {},
    "tuner.search": {
        "tuner.measure": "accuracy, latency, and the worker that takes them",
        "tuner.progress": "says how far it is",
        "tuner.tiles": "the first stage of a run",
    },
    "tuner.tiles": {
        "tuner.measure": "the timing protocol",
        "tuner.progress": "says how far it is",
    },
    "tuner.tasks": {"tuner.measure": "the first tensor of an output"},
    "tuner.check": {"tuner.measure": "scores and first tensors"},
    "tuner.show": {
        "tuner.check": "the similarities of layers",
        "tuner.measure": "a ratio and its interval",
        "tuner.search": "the result of a run",
    },
    "tuner.track": {"tuner.search": "what a run finds"},
    "tuner.cli": {
        "tuner.check": "verify, roundtrip, cka, doctor",
        "tuner.measure": "tries a task once before it is used",
        "tuner.progress": "progress on stderr or none",
        "tuner.search": "tune",
        "tuner.show": "tables, pictures, the report",
        "tuner.tasks": "a task without code, described by options",
        "tuner.tiles": "tiles",
        "tuner.track": "copies of a run",
    },
}
"""The tuner's rooms, and which of each other they may import. Beyond that they may import every
room of the library, and no room of the library imports them: searching and showing results needs
all of it, running a plan needs none of the tuner."""


ROOMS = {**{name: to for name, to in ARROWS.items() if name != "kernels"}, **KERNELS, **TUNER}
"""Every room with its arrows."""


def modules() -> dict[str, Path]:
    """Every module of the product, by its dotted name below ``attnpass``; a door by its room's."""
    found: dict[str, Path] = {}
    for folder, prefix in (("attnpass", ""), ("kernels", "kernels."), ("tuner", "tuner.")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if prefix or parts[0] not in ("kernels", "tuner"):  # which are links there
                name = prefix + ".".join(p for p in parts if p != "__init__")
                found[name.rstrip(".")] = path
    return found


def room(name: str) -> str:
    """The room that a module, or a name in it, belongs to."""
    parts = name.split(".")
    return next((".".join(parts[:n]) for n in (2, 1) if ".".join(parts[:n]) in ROOMS), "")


def seen(own: str, other: str) -> str:
    """The name under which ``own`` lists ``other``: from outside the kernels are one room."""
    return "kernels" if other in KERNELS and own not in KERNELS else other


@functools.cache
def imports(path: Path) -> set[str]:
    """What a file imports anywhere in it, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def arrows() -> Iterator[tuple[str, str, str, str]]:
    """Every import across rooms: the module, its room, the other room, the name imported."""
    for name, path in modules().items():
        for target in imports(path):
            if target.startswith("attnpass."):
                other = room(target.removeprefix("attnpass."))
                own = room(name)
                if name and other not in ("", own, EVERYBODY):
                    yield name, own, seen(own, other), target.removeprefix("attnpass.")


def summary(name: str) -> str:
    """The first line of a room's docstring."""
    path = modules().get(name)
    text = ast.get_docstring(ast.parse(path.read_text())) if path else None
    return (text or "").split("\n")[0]


def table() -> str:
    """The rooms, what each is, and its arrows with their reasons, in Markdown."""
    rows = ["| room | holds | may import |", "| --- | --- | --- |"]
    for name, targets in ROOMS.items():
        reasons = "; ".join(f"**{other}**: {reason}" for other, reason in targets.items())
        rows.append(f"| {name} | {summary(name)} | {reasons or 'nothing of attnpass'} |")
    return "\n".join(rows)


def picture() -> str:
    """The library's rooms in Mermaid; an arrow that a way over other rooms implies is left out.

    Dashed: imported when called.
    """
    drawn = {(a, b) for _, a, b, _ in arrows() if a in ARROWS and b in ARROWS}
    late = {(a, b) for a, b in drawn if b in LATER.get(a, ())}
    firm = drawn - late
    plain = sorted(x for x in firm if not _reaches(*x, firm - {x}))
    lines = [f"    {a} --> {b}" for a, b in plain] + [f"    {a} -.-> {b}" for a, b in sorted(late)]
    return "\n".join(["```mermaid", "graph TD", *lines, "```"])


def _reaches(start: str, end: str, drawn: set[tuple[str, str]]) -> bool:
    """Whether arrows lead from one room to another."""
    seen, stack = set(), [start]
    while stack:
        here = stack.pop()
        seen.add(here)
        stack += [b for a, b in drawn if a == here and b not in seen]
    return end in seen


def page() -> str:
    """What stands in the document."""
    return f"{BEGIN}\n\n{table()}\n\n{picture()}\n\n{END}"


def main() -> None:
    """Print the table and the picture; with ``--write`` put them into the document."""
    if "--write" not in sys.argv:
        print(page())
        return
    text = PAGE.read_text()
    PAGE.write_text(text[: text.index(BEGIN)] + page() + text[text.index(END) + len(END) :])


if __name__ == "__main__":
    main()
