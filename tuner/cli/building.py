"""The command that compiles the CPU kernels ahead of their first use: build."""

from __future__ import annotations

import time
from pathlib import Path

import click

from attnpass.tuner.cli.command import Answer, main, options


@main.command()
@click.option("--folder", default=None, help="Where to put them instead of the user's cache.")
@click.option(
    "--all", "all_sets", is_flag=True, help="For every processor of this kind, not this one only."
)
@options
def build(folder: str | None, all_sets: bool, as_json: bool, db: str | None) -> Answer:
    """The CPU kernels, compiled now; calls then neither wait nor need a compiler."""
    from attnpass.kernels.cpu import build as builder

    begun = time.perf_counter()
    sets = builder.family() if all_sets else [builder.instruction_set()]
    where = Path(folder) if folder else builder.cache()
    files = [str(path) for one in sets for path in builder.build(builder.PARTS, one, where)]
    seconds = time.perf_counter() - begun
    found = {"instructions": sets, "files": files, "seconds": round(seconds, 1)}
    return Answer(found, lambda c: c.print(f"{len(files)} libraries in {where}, {seconds:.0f} s"))
