"""The command that measures tile sizes: tiles."""

from __future__ import annotations

from typing import Any

import click

from attnpass.errors import OptionError
from attnpass.tuner.cli.command import Answer, main, options, task_argument


@main.command()
@task_argument(required=False, described=False)
@click.option("--shape", default=None, help="B,H,T,S,d instead of a task's shapes.")
@click.option("--dtype", default="float32", show_default=True, help="With --shape.")
@click.option("--h", default="sigmoid", show_default=True, help="With --shape: the function.")
@click.option("--causal", is_flag=True, help="With --shape.")
@click.option("--mask", default="none", show_default=True, help="With --shape: columns or rows.")
@click.option("--device", default="cpu", show_default=True, help="With --shape: cpu or cuda.")
@click.option("--backward", is_flag=True, help="Tune forward and backward together.")
@click.option("--trials", default=24, show_default=True, help="Tiles measured per shape.")
@click.option(
    "--seed", default=0, show_default=True, type=int, help="Of everything that is drawn."
)
@click.option("--refresh", is_flag=True, help="Measure again what is stored.")
@options
def tiles(
    task: str | None,
    load_timeout: float,
    shape: str | None,
    backward: bool,
    trials: int,
    seed: int,
    refresh: bool,
    as_json: bool,
    db: str | None,
    **call: Any,
) -> Answer:
    """Tile sizes for a task's attention shapes, or one shape, on this device."""
    from attnpass.store import Store
    from attnpass.tuner.cli.lookup import task_named
    from attnpass.tuner.progress import ProgressPrinter
    from attnpass.tuner.show import tile_table
    from attnpass.tuner.tiles import Shape, shapes_of, tune

    if (task is None) == (shape is None):
        raise OptionError("expected either TASK or --shape B,H,T,S,d, got both or neither")
    if trials < 1:
        raise OptionError(f"expected --trials >= 1, got {trials}")
    shapes = (
        [Shape.parse(shape, **call)] if shape else shapes_of(task_named(task or "", load_timeout))
    )
    shapes = [s.towards("backward" if backward else "forward") for s in shapes]
    progress = ProgressPrinter(as_json)
    with Store(db) as store:
        rows = tune(shapes, store, progress, trials=trials, seed=seed, refresh=refresh)
    return Answer({"tiles": rows}, lambda c: c.print(tile_table(rows)))
