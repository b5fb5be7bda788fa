"""How much work a call is, in steps of the product's own code: what grows can be told exactly."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

PRODUCT = str(Path(__file__).parent.parent)


def steps(run: Callable[[], Any], inside: str = PRODUCT) -> int:
    """The number of instructions that run in files below ``inside``; loops count every turn."""
    count = 0

    def step(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "opcode"
        return step

    def called(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(inside):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return step

    before = sys.gettrace()
    sys.settrace(called)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


def growth(run: Callable[[int], Callable[[], Any]], size: int = 100) -> float:
    """By how much the steps of ``run(n)()`` grow when n grows four times: about 4 if linear."""
    run(size)()  # what is imported or made once
    return steps(run(4 * size)) / steps(run(size))
