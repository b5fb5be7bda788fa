"""The command that makes a shell complete commands and options: completion."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from attnpass.tuner.cli.command import main


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """The script that makes a shell complete commands and options; source it."""
    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(main, {}, "attnpass", "_ATTNPASS_COMPLETE").source())
