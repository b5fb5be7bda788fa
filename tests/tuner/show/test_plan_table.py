"""The table of one plan names the weights that it changes."""

from __future__ import annotations

import io

from deltas import changed, model
from rich.console import Console

from attnpass.tuner.show import plan_table


def test_show_says_what_a_plan_changes():
    plan = changed(model(), sites="blocks.1.attn")
    out = io.StringIO()
    Console(file=out, width=120).print(plan_table(plan))
    (row,) = [line for line in out.getvalue().splitlines() if "blocks.1.attn" in line]
    assert "4 (1,088 numbers)" in row  # 48 x 16 + 48 + 16 x 16 + 16
