"""A model that is compiled under a plan, and what its calls must give."""

from __future__ import annotations

import copy
import itertools
import logging
import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import attnpass
from attnpass.plan import Plan
from random_use.compared import BOUNDS, Aloud, Undecided, Wrong, copies, error, restore, weights
from random_use.meaning import Spec
from random_use.models import Model
from random_use.reference import Reference, buffers


@dataclass
class Session:
    """A model in use.

    Attributes:
        pick: all choices. spec: of ``model``, which ``run`` calls compiled under ``plan``.
        regional: whether its blocks are compiled one by one. keep: whether it takes masks.
        tokens, batch: of the next call. grad: ``no_grad``, ``inference`` or ``grad``.
        bare: options that name one form for all sites; then ``plan`` is what it starts from.
        aloud: warnings since the model was compiled. calls: those under another inner backend
            than eager since then.
    """

    pick: random.Random
    spec: Spec
    model: Model
    plan: Plan
    bare: dict[str, Any] = field(default_factory=dict)
    inner: str = "eager"
    regional: bool = False
    strict: bool = True
    tokens: int = 5
    batch: int = 2
    grad: str = "no_grad"
    autocast: bool = False
    dynamic: bool | None = None
    aloud: Aloud = field(default_factory=Aloud)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    run: Any = None
    last: str = "open"
    good: Any = None

    def compile(self) -> None:
        """Compile the model anew."""
        logging.getLogger("attnpass").addHandler(self.aloud)
        torch._dynamo.reset()
        attnpass.reset_report()
        self.aloud.lines.clear()
        self.calls.clear()
        self.run = self.compiled(self.model, self.plan)

    def compiled(self, model: Model, plan: Plan | None) -> Any:
        """A model, whole or block by block; without a plan by the inner backend alone."""
        given: Any = {"backend": self.inner, "dynamic": self.dynamic}
        if plan is not None:
            chosen = self.bare or {"plan": plan}
            options = {"inner": self.inner, "strict": self.strict, **chosen}
            given |= {"backend": "attnpass", "options": options}
        if not self.regional:
            return torch.compile(model, **given)
        for block in dict.fromkeys(model.blocks):
            block._compiled_call_impl = None
            block.compile(**given)
        return model

    def back(self) -> None:
        """After a refusal: the model and plan of the last good call, compiled anew."""
        if self.good is not None:
            self.model, self.plan = self.good
        self.compile()

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def inputs(self) -> tuple[Tensor, Any]:
        """Random tokens, and the mask of the padding."""
        b, t = self.batch, self.tokens
        if self.model.training and b * t == 1:  # no statistics of one value
            t = 2
        make = torch.Generator().manual_seed(self.pick.randrange(1 << 30))
        x = torch.randn(b, t, self.spec.width, generator=make).to(self.dtype)
        if self.spec.padding == "none":
            return x, None
        ends = torch.randint(1, t + 1, (b, 1), generator=make)
        return x, torch.arange(t)[None] < ends

    def references(self, model: Model, plan: Plan) -> list[Reference]:
        """The references that a call may follow: one, or more where declines were said aloud."""
        changed = [n for n, e in plan.sites.items() if e.form != "softmax"]
        report = attnpass.compiled_report()
        declined = not self.strict and (report.declined or self.aloud.lines)
        sizes = range(len(changed) + 1) if declined else (0,)
        left = [frozenset(x) for n in sizes for x in itertools.combinations(changed, n)]
        return [Reference(model, plan, softmax) for softmax in left]

    def call(self, run: Any, x: Tensor, keep: Any, *past: Any) -> Any:
        """One call in the mode of the session."""
        mode = {"no_grad": torch.no_grad, "inference": torch.inference_mode}.get(
            self.grad, torch.enable_grad
        )
        half = torch.autocast("cpu", torch.bfloat16, enabled=self.autocast)
        if self.inner != "eager":
            self.calls.append((x, keep, *past))
        with mode(), half:
            return run(x, keep, *past)

    def fails_alone(self, failure: Exception) -> bool:
        """Whether the inner backend without attnpass fails at the same calls in the same way.

        With the same words, or in the buffer that was wrong: ``aot_eager`` refuses views of some
        strides, and loses what is added to a float64 buffer without axes.
        """
        torch._dynamo.reset()
        alone = self.compiled(self.model, None)
        for given in [one for one in self.calls if one[0].dtype == self.dtype]:
            plain = copy.deepcopy(self.model)
            try:
                self.call(alone, *given)
            except RuntimeError as own:
                if str(own).splitlines()[0] == str(failure).splitlines()[0]:
                    return True
                continue  # the model's own check, which an earlier call broke on purpose
            self.call(plain, *given)
            wanted = copies(plain)
            for name, b in copies(self.model).items():
                named = f"the buffer {name} differs" in str(failure)
                if named and error(b, wanted[name]) > BOUNDS[self.dtype]:
                    return True
        return False

    def check(self, x: Tensor, keep: Any, run: Any = None, model: Any = None) -> None:
        """One call and what it must give; with gradients those of inputs, weights and plan."""
        run = self.run if run is None else run
        model = self.model if model is None else model
        before = copies(model)
        grads = self.grad == "grad"
        x = x.requires_grad_() if grads else x
        out = self.call(run, x, keep)
        problem = ""
        after = buffers(model)
        written, got = copies(model), self.gradients(x, out, model) if grads else {}
        restore(model, before)
        found = self.references(model, self.plan)
        restore(model, written)
        for reference in found:
            problem = self._differs(reference, x, keep, out, after, got)
            if not problem:
                self._reported()
                return
        raise Wrong(problem)

    def _reported(self) -> None:
        """The report names no form that the plan has not."""
        for name, form in attnpass.compiled_report().rewritten.items():
            # an option names a form for graphs whose sites have other names than the model's
            ends = name if self.bare else f"{name}\n"
            known = [e.form for n, e in self.plan.sites.items() if ends in f"{n}\n"]
            if form not in known:
                raise Wrong(f"the report says {form} at {name}")

    def check_cached(self, x: Tensor, keep: Any, cuts: list[int], change: Any) -> None:
        """Calls on the tokens between ``cuts``, each with the keys and values of those before.

        ``change`` is applied to both caches between calls.
        """
        none = [None] * self.spec.layers
        past: Any = none
        found: list[Any] = [(r, none) for r in self.references(self.model, self.plan)]
        bound = 10 * BOUNDS[self.dtype]
        for a, b in itertools.pairwise(cuts):
            seen = None if keep is None else keep[:, :b]
            out, past = self.call(self.run, x[:, a:b], seen, past)
            wanted = [(r, *r(x[:, a:b].double(), seen, before)) for r, before in found]
            found = [(r, now) for r, want, now in wanted if error(out, want) <= bound]
            if not found:
                off = min(error(out, want) for _, want, _ in wanted)
                raise Wrong(f"tokens {a} to {b} with a cache differ by {off:.1e}")
            past, found = change(past), [(r, change(now)) for r, now in found]

    def _differs(self, r: Reference, x: Any, keep: Any, out: Any, after: Any, got: Any) -> str:
        bound = BOUNDS[torch.bfloat16 if self.autocast else self.dtype]
        y = x.detach().double().requires_grad_()
        before = copies(r.model)
        want = r(y, keep)
        wanted = buffers(r.model)
        off = error(out, want)
        if max(off, *(error(after[n], b) for n, b in wanted.items())) > bound:
            # what rounding alone makes of this model in this dtype
            restore(r.model, before)
            rounded = error(r.rounded(x.detach(), keep, self.autocast), want)
            written = {n: bound + 5 * error(b, wanted[n]) for n, b in buffers(r.model).items()}
            bound += 5 * rounded
            if max(bound, *written.values()) >= 1:
                raise Undecided("rounding alone is as large as the output")
            if off > bound:
                return f"the output differs by {off:.1e}, bound {bound:.1e}"
            for name, b in wanted.items():
                if error(after[name], b) > written[name]:
                    return f"the buffer {name} differs by {error(after[name], b):.1e}"
        if not got or bound > 1e-3:
            return ""
        names = ["x", *r.leaves()]
        found = dict(
            zip(names, self._slopes(want, [y, *r.leaves().values()], again=True), strict=True)
        )
        # a gradient that is a difference of large ones is as exact as these
        largest = max(float(g.abs().max()) for g in found.values())
        allowed = 10 * bound * largest
        off = {n: float((got[n] - g).abs().max()) for n, g in found.items() if n in got}
        if max(off.values()) > allowed:
            restore(r.model, before)
            z = x.detach().requires_grad_()
            rounded = r.rounded(z, keep, self.autocast, trained=True)
            ours = self._slopes(rounded, [z, *r.leaves().values()], again=True)
            errors = [
                float((a - b).abs().max()) for a, b in zip(ours, found.values(), strict=True)
            ]
            allowed += 5 * max(errors)
            if allowed >= largest:
                raise Undecided("rounding alone is as large as the gradients")
        name = max(off, key=lambda n: off[n])
        return f"the gradient of {name} differs by {off[name]:.1e}" if off[name] > allowed else ""

    @staticmethod
    def _slopes(out: Tensor, leaves: list[Tensor], again: bool = False) -> list[Tensor]:
        """Gradients in float64, zero where there is none; ``again``: others will follow."""
        total = (out.double() * weights(out)).sum()
        given: Any = {"allow_unused": True, "materialize_grads": True}
        found = torch.autograd.grad(total, leaves, retain_graph=again, **given)
        return [g.double() for g in found]

    def gradients(self, x: Tensor, out: Tensor, model: Model) -> dict[Any, Tensor]:
        """Gradients of inputs, weights, and the plan's parameters that are trained."""
        live: dict[Any, Any] = {"x": x, **dict(model.named_parameters()), **self.trained()}
        live = {n: p for n, p in live.items() if p.requires_grad}
        return dict(zip(live, self._slopes(out, list(live.values())), strict=True))

    def trained(self) -> dict[Any, nn.Parameter]:
        """The plan's parameters under the names that the reference gives them."""
        if self.bare:
            return {}
        found: dict[Any, nn.Parameter] = {
            (site, k): v for site, own in self.plan.values.items() for k, v in own.items()
        }
        for own in self.plan.deltas.values():
            for path, delta in own.items():
                found |= {(path, k): v for k, v in delta.named_parameters()}
        return found
