"""The callable that Dynamo runs: at each call it picks a layer by the parameters among inputs."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from attnpass.compiled.added import Values, delta_of
from attnpass.compiled.inner import Compiled
from attnpass.compiled.layers import CURE, Layer
from attnpass.errors import PlanError
from attnpass.plan import Plan
from attnpass.torch_internals import FakeTensor

log = logging.getLogger("attnpass")


class Run:
    """One layer with its compiled variant.

    Args:
        plan: whose values the layer adds. layer: with its deltas. variant: takes the inputs and
            then the added values. values: gives these.
    """

    def __init__(self, plan: Plan, layer: Layer, variant: Compiled, values: Values) -> None:
        self.layer = layer
        self._plan, self._variant, self._values = plan, variant, values
        # deltas are inputs of the variant, unless the plan held sums when it was compiled
        self._outside = layer.deltas if layer.held else {}
        self._sums: dict[int, tuple[int, weakref.ref[Tensor], Tensor]] = {}

    def serves(self, args: Sequence[Any]) -> bool:
        """Whether a call brings this layer's parameters."""
        return all(args[i] is now() for i, now in self.layer.identity)

    def __call__(self, *args: Any) -> Any:
        """The layer's output."""
        if self._outside:
            args = tuple(self._sum(i, x) if i in self._outside else x for i, x in enumerate(args))
        return self._variant(*args, *self._values())

    def _sum(self, i: int, weight: Tensor) -> Tensor:
        """A weight with its delta, that of its first call while the plan holds sums.

        A layer that its name alone makes known serves other models too, with other weights.
        """
        turn, plan = self._plan.held, self._plan
        known = self._sums.get(i)
        if turn and known is not None and known[0] == turn and known[1]() is weight:
            return known[2]
        out = delta_of(plan, *self._outside[i]).add(weight)
        if turn:
            self._sums[i] = turn, weakref.ref(weight), out
        return out


class Unchanged:
    """A graph that runs as it is, and says so once for each layer that should not.

    Args:
        run: the graph. at: the position of a parameter, by which layers are told apart; ``first``
            is there in the layer that it was compiled for, of which all was said. refuse: speaks
            or raises for the inputs of a layer.
    """

    def __init__(
        self, run: Compiled, at: int, first: Any, refuse: Callable[[Sequence[Any]], None]
    ) -> None:
        self.run, self.at, self.refuse = run, at, refuse
        self.seen = {id(first)}

    def __call__(self, *args: Any) -> Any:
        """The graph's output."""
        if id(args[self.at]) not in self.seen:
            self.refuse(args)
            self.seen.add(id(args[self.at]))
        return self.run(*args)


class Dispatch:
    """Chooses the layer whose parameters a call brings.

    Args:
        fallback: runs where no layer is known. meet: the layer of a call that none of the known
            ones serves; None where the plan has none. strict: raise instead of falling back.
        trial: runs where a call brings fake tensors.
    """

    def __init__(
        self,
        fallback: Compiled,
        meet: Callable[[Sequence[Any]], Run | None],
        *,
        strict: bool = False,
        trial: Run | None = None,
    ) -> None:
        self.fallback, self.meet, self.strict, self.trial = fallback, meet, strict, trial
        self.layers: list[Run] = []
        self.warned = False

    def __call__(self, *args: Any) -> Any:
        """The output of the layer whose parameters are among ``args``.

        Raises:
            PlanError: with ``strict``, a layer that the plan does not know.
        """
        for run in self.layers:
            if run.serves(args):
                return run(*args)
        # torch asks the parts of a split graph for the shapes of their results
        if self.trial is not None and any(isinstance(x, FakeTensor) for x in args):
            return self.trial(*args)
        met = self.meet(args)
        if met is not None:
            self.layers.append(met)
            return met(*args)
        text = f"a graph serves a layer that the plan does not know; it runs unchanged: {CURE}"
        if self.strict:
            raise PlanError(text)
        if not self.warned:
            self.warned = True
            log.warning("%s", text)
        return self.fallback(*args)
