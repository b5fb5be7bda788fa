"""The tables of the database, what their columns mean, and what each kind of measurement holds.

``python -m tests.schema`` prints the page; ``--write`` puts it into docs/schema.md, which a test
checks to be current. Tables, types and indexes are read from a database that the code makes, the
fields of measurements from the checks that a run makes before it uses them.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Any

from attnpass.store import Store
from attnpass.store.database import MIGRATIONS
from attnpass.tuner.search import stored

PAGE = Path(__file__).parent.parent / "docs" / "schema.md"

TABLES: dict[str, tuple[str, dict[str, str]]] = {
    "runs": (
        "One row per run of `attnpass tune`; the same command goes on with its row.",
        {
            "id": "digest of the settings, of all that a latency depends on, and of the"
            " calibration batches, 12 hex digits",
            "created": "when the run began first, UTC, ISO 8601",
            "task": "import path of the task",
            "status": "`running` (also of a run that was killed), `done` or `interrupted`",
            "settings": "JSON: the settings that are part of the run's identity",
            "context": "JSON: all that a latency of the run depends on",
            "result": "JSON: what `attnpass results RUN --json` prints; NULL until the run ends",
            "name": "the name of the `Task`; NULL in rows of version 1",
        },
    ),
    "measurements": (
        "One row per measurement, committed before the next begins.",
        {
            "key": "digest of kind, subject and context, 32 hex digits",
            "created": "when it was committed, UTC, ISO 8601",
            "run": "id of the run that committed it; NULL for tiles",
            "kind": "what was measured: see below",
            "subject": "what it was measured of: a plan's hash, a choice, a shape class",
            "outcome": "`ok`, `unreliable` (too noisy to be used again), or how it failed:"
            " `compile_error`, `inaccurate`, `oom`, `timeout`, `killed`, `crashed`; of tiles also"
            " `pruned`",
            "context": "JSON: all that it depends on; another context is another key"
            " (`attnpass results --why KEY` compares two)",
            "value": "JSON: the fields of its kind",
        },
    ),
    "plans": (
        "Plans that were found, imported or pinned.",
        {
            "hash": "digest of forms, options, parameters and deltas, 16 hex digits",
            "created": "when it was stored last, UTC, ISO 8601",
            "document": "JSON: the plan file without its parameters",
            "parameters": "the tensors of sites that have little, as safetensors, less than 64 KiB"
            " (in rows of version 1 all tensors)",
            "files": "JSON: the digests of the files that hold the other tensors",
        },
    ),
    "pins": (
        "The plans that `torch.compile` applies without options.",
        {
            "structure": "digest of the names and shapes of a model's sites",
            "created": "when it was pinned, UTC, ISO 8601",
            "plan": "hash of the plan",
        },
    ),
    "tiles": (
        "The tile of each shape class of a kernel, as `attnpass tiles` found it.",
        {
            "key": "digest of the shape class and the context, 32 hex digits",
            "created": "when it was committed, UTC, ISO 8601",
            "context": "JSON: device, versions, kernels, and the shape class as `class`",
            "tile": "JSON: the fields of the tile",
            "value": "JSON: its speed-up over the default tile, with its interval",
        },
    ),
}
"""Table -> what it holds, and its columns."""

KINDS: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "accuracy": (
        "`baseline scores`",
        "scores of the unchanged model: items per batch (`sizes`), scores of the items that select"
        " and of those held out, the items evaluated anew before anything is reused (`canary`),"
        " whether two evaluations differed (`random`), the mark that other measurements rest on"
        " (their context's `baseline`), and the files that were read with their digests",
        stored.BASELINE,
    ),
    "accuracy ": (
        "hash of a plan; `held out` and the hash",
        "scores per item; `complete` is false where scoring was stopped early",
        stored.PARTLY,
    ),
    "divergence": (
        "hash of a plan",
        "how far the plan moves the first outputs",
        stored.OTHERS["divergence"],
    ),
    "latency": (
        "hash of a plan (and ` over lossless`); `finalists` and their hashes",
        "milliseconds per round of each plan, interleaved, with the hash that each process"
        " reported; of a failure why, and the seconds that were allowed",
        {**stored.TIMES, **stored.FAILURE},
    ),
    "ceiling": (
        "`ceiling`",
        "the same of the unchanged model, twice, and of three ablations of its attention",
        {**stored.TIMES, **stored.FAILURE},
    ),
    "threads": (
        "`threads`",
        "rows of a number of threads, milliseconds, and how far two identical runs differed",
        None,
    ),
    "bank": (
        "a choice",
        "the plan that has it everywhere, distilled, with the loss left per site",
        stored.OTHERS["bank"],
    ),
    "recovered": (
        "hash of a plan",
        "the plan that came out of distilling it globally, and the numbers of that stage",
        stored.OTHERS["recovered"],
    ),
    "tiles": (
        "a shape class",
        "the outcome of a search for its tile: the tile, milliseconds, the gain over the default,"
        " how far two identical runs differed",
        None,
    ),
    "tile": (
        "a tile",
        "whether it was right, and how much faster than the default",
        None,
    ),
}
"""Kind -> subject, what the value holds, and the fields that a run checks, where it does."""


def made() -> sqlite3.Connection:
    """The tables that the code makes, in memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.db"
        Store(path).__exit__()
        there, copy = sqlite3.connect(path), sqlite3.connect(":memory:")
        there.backup(copy)
        there.close()
    return copy


def columns(database: sqlite3.Connection, table: str) -> list[tuple[str, str, str]]:
    """The name, the type and the constraints of each column of a table."""
    keys = {row[3]: row[2] for row in database.execute(f"PRAGMA foreign_key_list({table})")}
    found = []
    for _, name, kind, needed, _, first in database.execute(f"PRAGMA table_info({table})"):
        limits = ["primary key"] * bool(first) + ["not null"] * bool(needed and not first)
        limits += [f"references {keys[name]}"] if name in keys else []
        found.append((name, kind, ", ".join(limits)))
    return found


def indexes(database: sqlite3.Connection, table: str) -> list[str]:
    """The indexes of a table that were made for a query, with their columns."""
    rows = database.execute(f"PRAGMA index_list({table})").fetchall()
    names = sorted(row[1] for row in rows if row[3] == "c")
    return [
        f"`{name}` on "
        + ", ".join(row[2] for row in database.execute(f"PRAGMA index_info({name})"))
        for name in names
    ]


def page() -> str:
    """The page."""
    database = made()
    lines = [
        "# The database",
        "",
        "One SQLite file with STRICT tables, a write-ahead log and immediate transactions; any",
        "SQLite program reads it. `PRAGMA application_id` says that it is ours, `PRAGMA",
        f"user_version` which version of the tables it has: {len(MIGRATIONS)} now. A command that",
        "writes brings an older file up; one that only reads takes it as it is. A newer one is",
        "refused.",
        "",
        "Tensors of a site that take 64 KiB or more lie beside the file, in a folder that has",
        "its name and `.tensors` behind it: one safetensors file per site, named by the SHA-256",
        "of the tensors and their names. Plans that have a piece in common share its file. Files",
        "are written whole before the row that names them, and checked when they are read. Copy",
        "or move the folder with the database.",
        "",
        "This page is generated: `python -m tests.schema --write`.",
    ]
    for table, (about, meanings) in TABLES.items():
        lines += ["", f"## {table}", "", about, ""]
        lines += ["| column | type | | meaning |", "| --- | --- | --- | --- |"]
        for name, kind, limits in columns(database, table):
            lines.append(f"| `{name}` | {kind} | {limits} | {meanings[name]} |")
        made_for = indexes(database, table)
        lines += ["", f"Indexes: {'; '.join(made_for)}."] if made_for else []
    database.close()
    lines += ["", "## Kinds of measurement", ""]
    lines += ["| kind | subject | value | fields that are checked |", "| --- | --- | --- | --- |"]
    for kind, (subject, about, fields) in KINDS.items():
        known = ", ".join(f"`{name}`" for name in fields or ()) or "-"
        lines.append(f"| `{kind.strip()}` | {subject} | {about} | {known} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the page; with ``--write`` put it into the documents."""
    if "--write" in sys.argv:
        PAGE.write_text(page())
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
