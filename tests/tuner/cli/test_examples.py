"""Every command has an example that its own options parse, and help for every option."""

from __future__ import annotations

import shlex

import click
import commands
import pytest
from tuning import run

from attnpass.tuner.cli import main
from attnpass.tuner.cli.examples import EXAMPLES


def test_every_command_has_one():
    assert EXAMPLES.keys() == main.commands.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_parses(name):
    words = shlex.split(EXAMPLES[name].partition(">>")[0])
    assert words[:2] == ["attnpass", name]
    command = main.commands[name]
    context = click.Context(command, info_name=name)
    command.parse_args(context, words[2:])
    assert f"Example: {EXAMPLES[name]}" in " ".join(command.get_help(context).split())


def test_every_option_has_help():
    for name, command in main.commands.items():
        for option in command.params:
            bare = isinstance(option, click.Option) and not option.help
            assert not bare, f"{name} {option.opts}"


def test_the_reference_is_current():
    assert commands.PAGE.read_text() == commands.page()


def test_alone_it_says_what_to_do_first():
    found = run()
    assert found.returncode == 0
    assert "attnpass doctor" in found.stdout and "attnpass tune TASK" in found.stdout
