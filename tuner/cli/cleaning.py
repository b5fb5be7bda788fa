"""The command that removes what nobody will read again: gc."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

from attnpass.errors import OptionError
from attnpass.tuner.cli.command import Answer, main, options
from attnpass.tuner.cli.tuning import seconds

if TYPE_CHECKING:
    from attnpass.store import Removed


@main.command()
@click.option(
    "--older-than",
    default=None,
    help="Measurements, and checkpoints of trainings that were broken off, of that age go too,"
    " e.g. 90d or 12h (default: none goes for its age).",
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed; remove nothing.")
@options
def gc(older_than: str | None, dry_run: bool, as_json: bool, db: str | None) -> Answer:
    """Remove what no run here will read again, and give its space back.

    That is: measurements taken with other kernels, another torch or protocol than those of this
    installation, or resting on a baseline that was measured anew; plans that no run, pin or
    measurement names; files of tensors that no plan names. Runs, pins, their plans, and what a
    run that is going on has committed stay.
    """
    import torch

    from attnpass import environment, fingerprint
    from attnpass.store import Store, ago, collect_garbage, find_garbage

    here = {
        "kernels": fingerprint.kernels_digest(),
        "recovery": fingerprint.recovery_digest(),
        "torch": torch.__version__,
        "protocol": environment.PROTOCOL,
    }
    age = None if older_than is None else seconds(older_than, "--older-than")
    if age is not None and not 0 <= age < math.inf:
        raise OptionError(f"expected --older-than of 0 or more, like 90d or 12h, got {older_than}")
    before = "" if age is None else ago(age)
    with Store(db, read=dry_run) as store:
        removed = (find_garbage if dry_run else collect_garbage)(store, here, before)
    value = {**removed.as_dict(), "dry_run": dry_run}
    return Answer(value, lambda c: c.print(_told(removed, dry_run), highlight=False))


def _told(removed: Removed, dry_run: bool) -> str:
    """What was removed, or would be, in words."""
    why = ", ".join(f"{name}: {count}" for name, count in removed.reasons.items())
    return "\n".join(
        [
            f"{removed.measurements} measurements, {removed.tiles} tiles"
            + (f" ({why})" if why else ""),
            f"{removed.plans} plans, {removed.files} files of tensors and checkpoints",
            f"{removed.bytes:,} bytes {'would be ' if dry_run else ''}freed",
            *(
                []
                if dry_run or removed.compacted
                else ["not compacted: other processes use the database; run it again later"]
            ),
        ]
    )
