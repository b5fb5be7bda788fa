"""The steps of a session: calls, changes of mode, of weights, of the plan, and of the model."""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from compiled.test_added import WAYS

import attnpass
from attnpass.plan import Entry, Plan
from random_use.compared import Wrong
from random_use.meaning import draw
from random_use.models import LIMIT, build
from random_use.plans import bare_form, random_plan
from random_use.session import Session

SIZES = (2, 3, 4, 5, 6, 7, 8, 9, 11, 14, 17) * 2 + (1,)

LARGE = 2.0
"""Weights are scaled down where one is larger than this."""


def opened(seed: int) -> Session:
    """A session of a random model under a random plan."""
    pick = random.Random(seed)
    spec = draw(pick)
    model = build(spec, seed).train(spec.norm == "batch" and pick.random() < 0.5)
    torch._dynamo.reset()
    s = Session(pick, spec, model, Plan({}))
    s.inner = pick.choice(("eager",) * 7 + ("aot_eager",))
    s.regional = spec.layers > 1 and not spec.breaks and pick.random() < 0.5
    s.strict = pick.random() < 0.7
    s.dynamic = pick.choice((None, True, True))
    s.grad = pick.choice(("no_grad", "no_grad", "grad"))
    if pick.random() < 0.15:
        s.bare, s.plan = bare_form(pick, model, *s.inputs())
    else:
        s.plan = random_plan(pick, model, *s.inputs())
        if pick.random() < 0.35 and s.grad == "no_grad":
            s.plan.hold()
    s.compile()
    return s


def size(s: Session) -> None:
    """Other lengths, also 1 and beyond the constants of masks."""
    s.tokens = s.pick.choice(SIZES)


def batch(s: Session) -> None:
    s.batch = s.pick.choice((1, 2, 3))


def gradients(s: Session) -> None:
    modes = ("no_grad", "inference", "grad") if not s.plan.held else ("no_grad", "inference")
    s.grad = s.pick.choice(modes)


def dtype(s: Session) -> None:
    """Weights in another dtype; held sums do not see that they were rounded, and are held anew."""
    s.model.to(s.pick.choice((torch.float32, torch.float64, torch.bfloat16, torch.float32)))
    if s.plan.held:
        s.plan.hold()


def train(s: Session) -> None:
    s.model.train(s.pick.random() < 0.5 and s.spec.norm == "batch")


def autocast(s: Session) -> None:
    s.autocast = s.pick.random() < 0.3


def way(s: Session) -> None:
    """Weights, deltas or the forms' parameters change."""
    names = [n for n in WAYS if s.dtype == torch.float32 or n in ("past_autograd", "in_place")]
    if s.bare:
        names = [n for n in names if "form" not in n and "delta" not in n]
    name = s.pick.choice(names)
    if name in ("averaged",) or (name == "other_delta" and s.spec.wiring != "plain"):
        name = "past_autograd"
    WAYS[name](s.model, s.plan.copy() if s.bare else s.plan)
    for p in (*s.model.parameters(), *s.plan.parameters()):
        p.grad = None


def settle(s: Session) -> None:
    """Large numbers become small again, by writes that autograd does not see."""
    if s.plan.held:
        return
    own = () if s.bare else s.plan.parameters()
    for p in (*s.model.parameters(), *own):
        if float(p.detach().abs().max()) > LARGE:
            p.data.mul_(0.3)


def hold(s: Session) -> None:
    """The plan holds its sums, from the model's next compilation on."""
    if s.grad != "grad" and s.plan.deltas and not s.plan.held:
        s.plan.hold()
        s.compile()


def release(s: Session) -> None:
    """The plan holds no sums any more: what changes from now on is seen."""
    if s.plan.held:
        s.plan.release()
        WAYS["past_autograd"](s.model, s.plan)


def again(s: Session) -> None:
    """Compiled anew, perhaps whole instead of by blocks."""
    s.regional = s.spec.layers > 1 and not s.spec.breaks and s.pick.random() < 0.4
    s.compile()


def reload(s: Session) -> None:
    """The plan from a file, bound to the model or not."""
    if s.bare:
        return
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan.load(s.plan.save(Path(folder) / "plan.json"))
    plan.round_trip = s.plan.round_trip
    bound = s.pick.random() < 0.5
    if bound:
        plan.bind(s.model, *s.inputs())
    held = not bound and s.grad != "grad" and plan.deltas
    if held:  # of other weights, the graph is known by its names alone, and serves other models
        WAYS["past_autograd"](s.model, plan)
        plan.hold()
    s.plan = plan
    s.compile()
    if held:
        s.check(*s.inputs())
        other(s)


def copied(s: Session) -> None:
    """A deep copy goes on in the model's place, under the same plan."""
    s.model = copy.deepcopy(s.model)
    s.run = s.compiled(s.model, s.plan)


def other(s: Session) -> None:
    """Another model of the class, of other weights, is called under the same plan."""
    second = build(s.spec, s.pick.randrange(1000)).to(s.dtype).train(s.model.training)
    run = s.compiled(second, s.plan)
    s.check(*s.inputs(), run=run, model=second)


def freeze(s: Session) -> None:
    """The plan's parameters are trained no more, or compiled as frozen and trained after it."""
    if s.bare or s.plan.held:
        return
    for p in s.plan.parameters():
        p.requires_grad_(False)
    if s.pick.random() < 0.7:
        # eager graphs keep every gradient, and none is asked for in two of the three modes
        s.grad = s.pick.choice((s.grad, "grad", "grad"))
        if s.pick.random() < 0.5:
            s.inner = "aot_eager"
        s.compile()
        s.check(*s.inputs())
        for p in s.plan.parameters():
            p.requires_grad_(True)


def misfit(s: Session) -> None:
    """An entry of another attention: nothing of it may run."""
    changed = [n for n, e in s.plan.sites.items() if e.changes]
    if s.bare or not changed:
        return
    name = s.pick.choice(changed)
    s.plan, s.strict = s.plan.copy(), True
    for other in changed:
        if other != name and s.pick.random() < 0.5:
            s.plan.sites[other] = Entry("softmax", {}, s.plan.sites[other].fits)
    entry = s.plan.sites[name]
    entry.fits = {**entry.fits, "heads": s.spec.heads + 1}
    again(s)
    s.check(*s.inputs())
    raise Wrong(f"the entry of {name} is for {s.spec.heads + 1} heads, and the call ran")


def converted(s: Session) -> None:
    """The model as a plain module that was made from one example, at other sizes."""
    if s.bare or s.spec.breaks or s.spec.cached or s.model.training:
        return
    s.grad, s.autocast = "no_grad", False
    if s.pick.random() < 0.5:
        s.batch, s.tokens = s.pick.choice(((1, 1), (1, s.tokens), (2, 1)))
    made = attnpass.convert(s.model, s.plan.copy(), *s.inputs())
    refused = None
    for change in (size, batch, size):
        change(s)
        try:
            s.check(*s.inputs(), run=made)
        except attnpass.CaptureError as error:
            refused = error
    if refused is not None:
        raise refused


def cached(s: Session) -> None:
    """Tokens in pieces with a growing cache, reordered or cropped between calls."""
    narrow = s.autocast or s.dtype == torch.bfloat16
    if not s.spec.cached or s.grad == "grad" or narrow or s.model.training:
        return
    x, keep = s.inputs()
    cuts = sorted({0, x.shape[1], *(s.pick.randrange(x.shape[1] + 1) for _ in range(3))})
    order = torch.arange(s.batch)
    if keep is None and s.pick.random() < 0.5:
        order = order.flip(0)
    change = lambda past: [tuple(part[order] for part in own) for own in past]  # noqa: E731
    s.check_cached(x, keep, cuts, change)


def threads(s: Session) -> None:
    """Two threads call at once."""
    if s.model.training or s.spec.counter or s.grad != "no_grad":
        return
    given = [s.inputs() for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        outs = list(pool.map(lambda one: s.call(s.run, *one), given))
    for one, out in zip(given, outs, strict=True):
        s.check(*one, run=lambda *_, out=out: out)


def violation(s: Session) -> None:
    """The model's own check fails, compiled as eagerly."""
    if not s.spec.check:
        return
    x, keep = s.inputs()
    try:
        s.call(s.run, x * 0 + 2 * LIMIT, keep)
    except RuntimeError as error:
        if "expected small inputs" in str(error):
            return
        raise
    raise Wrong("the model's check is gone")


STEPS: dict[Callable[[Session], None], float] = {
    size: 20, batch: 1, gradients: 1, dtype: 1, train: 1, autocast: 1, way: 34, hold: 4,
    release: 3, again: 3, reload: 4, copied: 2, other: 4, threads: 3, violation: 3,
    freeze: 3, misfit: 3, converted: 8, cached: 8,
}  # fmt: skip
"""Every step and how often it is drawn; each is followed by a call that is checked."""


def step(s: Session) -> str:
    """One random step and a checked call; the step's name, which is also ``s.last``."""
    chosen: Any = s.pick.choices(list(STEPS), list(STEPS.values()))[0]
    if chosen is way and s.plan.held:  # held sums may not see it
        chosen = s.pick.choice((other, release))
    s.last = str(chosen.__name__)
    settle(s)
    chosen(s)
    s.check(*s.inputs())
    s.good = s.model, s.plan
    return s.last
