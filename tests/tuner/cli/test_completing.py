"""The command completion: what it prints, a shell runs."""

from __future__ import annotations

import subprocess

import pytest
from tuning import run


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete(shell):
    found = run("completion", shell)
    assert found.returncode == 0 and "_ATTNPASS_COMPLETE" in found.stdout


def test_bash_reads_the_script():
    script = run("completion", "bash").stdout
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_another_shell_is_wrong_usage():
    assert run("completion", "cmd").returncode == 2
