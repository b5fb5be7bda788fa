"""The model in float64, eagerly, under a plan: forms by their formulas, weights by W + delta.

    sigmoid   g sigmoid(tau s + b - log L) v          (2409.04431)
    relu      g L^-alpha relu(tau s + b) v             (2309.08586)

with ``s = scale q (k - k0)^T + bias``; positions that the mask does not keep count nothing. Hydra
and SkipAt are those of ``forms_by_hand``.
"""

from __future__ import annotations

import copy
import types
from collections import deque
from dataclasses import replace
from typing import Any

import torch
from forms_by_hand import hydra_by_hand, skipat_by_hand
from torch import Tensor, nn

from random_use.meaning import Spec, kept, slopes
from random_use.models import Attention, Model, spelled

ACTIVATIONS = {
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "relu": lambda x: x.clamp_min(0),
    "relu2": lambda x: x.clamp_min(0) ** 2,
    "softplus": lambda x: torch.log1p(torch.exp(-x.abs())) + x.clamp_min(0),
}

Form = dict[str, Any]
"""``form``, its ``options``, and ``values``: its parameters in float64."""


def lengths(spec: Spec, keep: Tensor, length: Any) -> Tensor:
    """L of every row."""
    if length is None:
        length = "keys" if spec.mask == spec.padding == "none" else "visible"
    if length == "visible":
        return keep.sum(-1, keepdim=True).clamp_min(1).double()
    number = float(keep.shape[-1]) if length == "keys" else float(length)
    return torch.full((1, 1, 1, 1), number, dtype=torch.float64)


def attention(
    spec: Spec, q: Tensor, k: Tensor, v: Tensor, pads: Tensor | None, form: Form
) -> Tensor:
    """One attention under a form, ``[B, H, T, d]``."""
    values, options = form["values"], form["options"]
    h = options.get("h", "relu") if form["form"] == "relu" else "sigmoid"
    if "k0" in values:
        k = k - values["k0"][:, None]
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    s = (q[:, :, :, None] * k[:, :, None]).sum(-1) / q.shape[-1] ** 0.5
    if spec.softcap:
        s = 2.0 * torch.tanh(s / 2.0)
    if spec.alibi:
        s = s + slopes(spec.heads).double() * (torch.arange(s.shape[-1]) - s.shape[-1])
    keep = kept(spec, *s.shape[-2:])[None, None]
    if pads is not None:
        keep = keep & pads[:, None, None]
    count = lengths(spec, keep, options.get("L"))
    head = lambda name: values[name].view(-1, 1, 1) if name in values else None  # noqa: E731
    tau, b, gain = head("log_tau"), head("b"), head("gain")
    s = s if tau is None else s * tau.exp()
    s = s if b is None else s + b
    if h == "sigmoid":
        p = ACTIVATIONS[h](s - count.log())
    else:
        p = ACTIVATIONS[h](s) / count ** options.get("alpha", 1.0)
    p = p * keep
    return ((p if gain is None else p * gain).to(v.dtype)) @ v


def formed(forms: dict[str, Form], turns: deque[str], fused: bool) -> dict[str, Any]:
    """Methods of ``Attention`` that take the form of the next name in ``turns``.

    ``fused``: softmax by torch's operator, whose backward rounds as ``exp(s - logsumexp)`` does.
    """
    last: list[Tensor] = []

    def core(self: Attention, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None) -> Tensor:
        form = forms.get(turns.popleft())
        if form is None or form["form"] == "softmax":
            by_operator = fused and not self.spec.softcap and self.spec.style != "is-causal"
            spec = replace(self.spec, style="sdpa") if by_operator else self.spec
            return spelled(spec, q, k, v, keep)
        if form["form"] == "hydra":
            rows = None if keep is None else keep[:, None, None, :]
            causal = self.spec.mask == "causal"
            q = q.expand(k.shape[0], -1, -1, -1)
            return hydra_by_hand(form["values"], q, k, v, rows, causal=causal)
        return attention(self.spec, q, k, v, keep, form)

    def forward(self: Attention, x: Tensor, keep: Tensor | None, past: Any = None) -> Any:
        form = forms.get(turns[0])
        if form is None or form["form"] != "skipat":
            out = Attention.forward(self, x, keep, past)
        else:
            turns.popleft()
            out = skipped(self.spec, last[-1], keep, form), None
        last.append(out[0])
        return out

    return {"core": core, "forward": forward}


def skipped(spec: Spec, z: Tensor, keep: Tensor | None, form: Form) -> Tensor:
    """SkipAt of the output ``z [B, T, D]`` of the attention before (2301.02240)."""
    if form["options"]["r"] == 0:
        return z
    rows = None if keep is None else keep[:, None, None, :]
    causal, kernel = spec.mask == "causal", form["options"]["kernel"]
    given: Any = {"kernel": kernel, "grid": None, "prefix": 0, "causal": causal}
    return skipat_by_hand(form["values"], z, rows, **given)


class Reference:
    """A copy of a model as it is now, under the forms and deltas that a plan has now.

    Attributes:
        weights, values, parts: float64 leaves: of the model, of the forms, of the deltas.
    """

    def __init__(self, model: Model, plan: Any, softmax: frozenset[str] = frozenset()) -> None:
        self.model = copy.deepcopy(model).double()
        leaf = lambda x: x.detach().double().clone().requires_grad_()  # noqa: E731
        self.weights = {n: leaf(p) for n, p in model.named_parameters()}
        same = {id(p): n for n, p in model.named_parameters()}
        alias = {n: same[id(p)] for n, p in model.named_parameters(remove_duplicate=False)}
        self.values: dict[tuple[str, str], Tensor] = {}
        self.parts: dict[tuple[str, str], Tensor] = {}
        self.forms: dict[str, Form] = {}
        self.sums = dict(self.weights)
        self.fused = plan.round_trip
        for name, entry in plan.sites.items():
            if name in softmax:
                continue
            own = {k: leaf(v) for k, v in plan.values.get(name, {}).items()}
            self.values |= {(name, k): v for k, v in own.items()}
            self.forms[name] = {"form": entry.form, "options": entry.options, "values": own}
            if entry.form == "softmax":
                continue
            for path, delta in plan.deltas.get(name, {}).items():
                parts = {k: leaf(v) for k, v in delta.named_parameters()}
                self.parts |= {(path, k): v for k, v in parts.items()}
                weight = dict(model.named_parameters(remove_duplicate=False))[path]
                self.sums[alias[path]] = _sum(self.sums[alias[path]], parts, weight.dtype)

    def __call__(self, x: Tensor, keep: Tensor | None, *past: Any) -> Any:
        """What the model returns; its buffers are written as the model writes its own."""
        return self._run(self.forms, self.sums, False, x.double(), keep, *past)

    def leaves(self) -> dict[Any, Tensor]:
        """What gradients reach besides the input."""
        return {**self.weights, **self.values, **self.parts}

    def rounded(self, x: Tensor, keep: Tensor | None, half: bool, trained: bool = False) -> Tensor:
        """The same in the dtype of ``x``: what it differs by is rounding."""
        narrow = lambda v: v.to(x.dtype)  # noqa: E731
        forms = {
            name: {**form, "values": {k: narrow(v) for k, v in form["values"].items()}}
            for name, form in self.forms.items()
        }
        self.model.to(x.dtype)
        grads = torch.enable_grad() if trained else torch.no_grad()
        with grads, torch.autocast("cpu", torch.bfloat16, enabled=half):
            sums = {k: narrow(v) for k, v in self.sums.items()}
            return self._run(forms, sums, self.fused, x, keep)

    def _run(self, forms: Any, sums: Any, fused: bool, *given: Any) -> Any:
        turns = deque(self.model.spec.calls)
        methods = formed(forms, turns, fused)
        for module in self.model.modules():
            if isinstance(module, Attention):
                for name, method in methods.items():
                    setattr(module, name, types.MethodType(method, module))
        out = torch.func.functional_call(self.model, sums, given)
        assert not turns
        return out


def _sum(weight: Tensor, parts: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """W + delta, rounded as the model's weights are where they are narrower than float32."""
    change = parts["full"] if "full" in parts else parts["left"] @ parts["right"]
    out = weight + change.view(weight.shape)
    return out if dtype.itemsize >= 4 else out.to(dtype).double()


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """What a call may have written."""
    return {n: b.detach().double().clone() for n, b in model.named_buffers()}
