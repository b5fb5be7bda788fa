"""Hostile calls of the registered operators, in a child process that may die.

    python hostile_calls.py --calls 2000 --seed 1    prints a summary as one JSON line
    TRITON_INTERPRET=1 python hostile_calls.py --calls 50 --triton    the GPU's kernels

A valid call must equal the float64 reference, output and gradients, whatever its shapes, strides,
dtypes, scalars and tile; its inputs end before memory that kills who reads it. A call with one
fault must be refused by an ``ArgumentError`` of one line, when it runs and when it is traced.
Anything else counts as wrong; a dead child as crashed, with the call that it died of.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hostile_operators.calls import LEAVES, Call, Draw, backward, expected
from hostile_operators.faults import spoiled
from torch import Tensor

HERE = Path(__file__).parent

LONGEST = 120
"""Seconds after which a call counts as crashed: it hangs."""

ALLOWED = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest error over the largest entry; a gradient gets six times that.

Of float64 softplus decides: torch takes it for its argument from 20 on, which is 2e-9 off.
"""

UNSEEN = ("a sparse tensor", "a tensor without memory")
"""Faults of memory, which a trace does not see."""


def draw(given: argparse.Namespace, index: int) -> Call:
    """Call number ``index``: half of the calls have a fault, or all have the given one."""
    small = {"most": 40, "blocks": (16, 32, 64)} if given.triton else {}
    source, fault = Draw(f"{given.seed}:{index}", **small), given.fault
    while True:
        call = source.call()
        if fault is None and source.often(0.5):
            return call
        if source.often(0.4):
            call = backward(call)
        found = spoiled(call.operator, call.given, source.pick, fault)
        if found is not None:
            call.fault, call.given = found
            return call


def run(call: Call, given: dict[str, Any]) -> Any:
    """The first result of the operator."""
    out = getattr(torch.ops.attnpass, call.operator)(*given.values())
    return out[0] if call.operator == "softmax" else out


def verdict(call: Call) -> str:
    """``valid``, ``refused``, or what is wrong."""
    try:
        if not call.fault:
            return _traced(call) or _numbers(call) or "valid"
        traced = "" if call.fault in UNSEEN else _refusal(call, traced=True)
        return traced or _refusal(call, traced=False) or "refused"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"


def _refusal(call: Call, traced: bool) -> str:
    """What is wrong with how a call with a fault ends; "" for a clear error."""
    from attnpass.errors import ArgumentError

    try:
        out = _fake(call) if traced else run(call, call.given)
    except ArgumentError as error:
        text = str(error)
        clear = text.startswith("expected ") and ", got " in text and "\n" not in text
        return "" if clear else f"unclear: {text}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    return f"accepted, gives {type(out).__name__}"


def _fake(call: Call) -> Any:
    """The result without values."""
    mode = torch._subclasses.FakeTensorMode()
    given = {
        n: mode.from_tensor(x.detach()) if isinstance(x, Tensor) else x
        for n, x in call.given.items()
    }
    with mode:
        return run(call, given)


def _traced(call: Call) -> str:
    """Whether a trace promises the output that the call gives."""
    fake, real = _fake(call), run(call, call.given)
    same = (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)
    return "" if same else f"traced as {fake}, is {real.shape} {real.stride()} {real.dtype}"


def _numbers(call: Call) -> str:
    """What is wrong with output and gradients; "" if they are those of the reference."""
    given = dict(call.given)
    leaves = [n for n in LEAVES if given.get(n) is not None]
    for name in leaves:
        given[name] = given[name].detach().requires_grad_()
    out = run(call, given)
    found = torch.autograd.grad(out, [given[n] for n in leaves], call.grad)
    want, gradients = expected(call)
    wrong = _far("out", out, want, ALLOWED[given["q"].dtype])
    # a bias that many logits share moves softmax little: its gradient is the rest of large ones
    largest = max((float(g.abs().max()) for g in gradients.values() if g.numel()), default=0.0)
    scores = out[..., :1].numel() * given["k"].shape[2]
    for name, got in zip(leaves, found, strict=True):
        least = largest / 10 if call.operator == "softmax" else 0.0
        least *= max(1, scores / max(1, got.numel())) ** 0.5 if name == "bias" else 1
        if got.dtype != given[name].dtype:
            return f"d{name} in {got.dtype}"
        allowed = 6 * max(ALLOWED[given["q"].dtype], ALLOWED[got.dtype])
        wrong = wrong or _far(f"d{name}", got, gradients[name], allowed, least)
    return wrong


def _far(name: str, got: Tensor, want: Tensor, allowed: float, least: float = 0.0) -> str:
    """``least``: what the error is compared with if the wanted numbers are smaller."""
    if got.shape != want.shape:
        return f"{name}: shape {list(got.shape)} for {list(want.shape)}"
    if want.numel() == 0:
        return ""
    largest = want.abs().max().clamp_min(max(least, 1e-2))
    error = float((got.detach().double() - want).abs().max() / largest)
    return "" if error <= allowed else f"{name}: off by {error:.3g} of the largest, {allowed:.1g}"


def child(given: argparse.Namespace) -> None:
    """Run calls one after the other; say which one begins, and how it ended."""
    from provers import mutated

    from attnpass.kernels import dispatch, ops  # noqa: F401
    from attnpass.kernels.cpu import launch

    if given.triton:
        dispatch._has_triton = lambda x: x.dtype != torch.float64

    compiled = launch.library
    for name in ("pointwise", "pointwise_backward", "hydra"):
        compiled(name)  # takes a while when it is compiled, and is no call
    change = mutated(*given.mutate) if given.mutate else contextlib.nullcontext()
    with change:
        for index in range(given.begin, given.begin + given.calls):
            print(json.dumps({"begin": index}), flush=True)
            signal.alarm(LONGEST)
            call = draw(given, index)
            tiled = call.way == "tiled"
            launch.library = (lambda name: "switched off") if tiled else compiled
            kernels = compiled("pointwise")
            if not isinstance(kernels, str):
                kernels.serve(call.way == "direct")
            torch.set_num_threads(call.threads)
            print(json.dumps({"end": verdict(call), "call": str(call)}), flush=True)
            signal.alarm(0)


def many(given: Sequence[str], calls: int, most: int = 10) -> dict[str, Any]:
    """The summary of ``calls`` calls; a child that dies is followed by another, ``most`` times.

    ``given``: the arguments of every child.
    """
    tally = {"valid": 0, "refused": 0, "wrong": 0, "crashed": 0}
    failures: list[dict[str, Any]] = []
    begin = 0
    while begin < calls and tally["crashed"] < most:
        which = ["--begin", str(begin), "--calls", str(calls - begin)]
        command = [sys.executable, __file__, "--child", *which, *given]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=HERE)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        begun = [line["begin"] for line in lines if "begin" in line]
        if not begun:
            raise SystemExit(f"no call began: exit code {done.returncode}")
        for line in lines:
            if "end" in line:
                kind = line["end"] if line["end"] in ("valid", "refused") else "wrong"
                tally[kind] += 1
                failures += [line] if kind == "wrong" else []
        if "begin" in lines[-1] or done.returncode:
            tally["crashed"] += 1
            failures.append({"end": f"exit code {done.returncode}", "begin": begun[-1]})
        begin = begun[-1] + 1
    return {**tally, "failures": failures}


def main() -> int:
    """Run the calls and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--begin", type=int, default=0, help="number of the first call")
    parser.add_argument("--child", action="store_true", help="run the calls in this process")
    parser.add_argument("--triton", action="store_true", help="by Triton's interpreter")
    parser.add_argument("--fault", help="every call has this one")
    parser.add_argument(
        "--mutate", nargs=3, metavar=("MODULE", "OLD", "NEW"), help="run with a changed line"
    )
    given = parser.parse_args()
    if given.child:
        child(given)
        return 0
    more = ["--triton"] if given.triton else []
    result = many(["--seed", str(given.seed), *more], given.calls)
    failures = result.pop("failures")
    for failure in failures[:20]:
        call = failure.get("call") or draw(given, failure["begin"])
        print(f"{failure['end']}\n  {call}")
    print(json.dumps({"seed": given.seed, "calls": given.calls, **result}))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
