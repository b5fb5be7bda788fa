"""Every site rewritten to form ``softmax``, from what was extracted, computes what it did before.

The bound is 1e-5 relative to float64 (or what eager itself needs, where that is more).
"""

import copy

import pytest
import torch
from models import (
    CAUSALS,
    CUT_GRADIENTS,
    DISTINCT,
    EQUAL,
    IMPOSTORS,
    OTHERS,
    PADDING,
    PLAIN,
    POSITIVES,
    WRITTEN,
    Attention,
    Stack,
)
from tuning import TINY

import attnpass
from attnpass import forms
from attnpass.task import load_task
from attnpass.tuner.check.roundtrip import check_roundtrip

BOUND = 1e-5
SOME = [*PLAIN[::2], *PADDING[::3], *CAUSALS[::2], *OTHERS]
MASKED = [c for c in POSITIVES if c.needs == "mask"]


def first(out):
    return out[0] if isinstance(out, tuple) else out


def error(got, want):
    """Largest difference over the largest value of ``want``."""
    assert got.shape == want.shape
    got, want = got.detach().double(), want.detach().double()
    assert torch.equal(got.isnan(), want.isnan())
    return ((got - want).nan_to_num().abs().max() / want.nan_to_num().abs().max()).item()


def cast(inputs, dtype):
    return tuple(
        x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs
    )


def softmax_capture(model, inputs, **options):
    """The model with every legal site as form ``softmax``, and the sites' names."""
    capture = attnpass.Capture(model, **options)
    capture.trace(*inputs)
    modules = {
        s.name: forms.build("softmax", s) for s in capture.sites if s.legal["softmax"] is None
    }
    capture.use_modules(modules)
    return capture, modules


def check(model, inputs, sites=1):
    """Output and gradients against eager in float64; returns the number of sites rewritten."""
    exact, wide = copy.deepcopy(model).double(), cast(inputs, torch.float64)
    want = first(exact(*wide))
    eager = first(model(*inputs))
    capture, modules = softmax_capture(model, inputs)
    if sites is not None:
        assert len(modules) == sites
    out = first(capture(*inputs))
    assert out.dtype == eager.dtype
    assert out.stride() == eager.stride()
    assert error(out, want) <= max(BOUND, 2 * error(eager, want))
    if not want.requires_grad:
        assert not out.requires_grad
        return len(modules)
    weight = torch.linspace(0.5, 1.5, want.numel()).view(want.shape)
    parameters = dict(model.named_parameters())
    wanted = torch.autograd.grad(
        (want * weight.double()).sum(), list(exact.parameters()), allow_unused=True
    )
    found = torch.autograd.grad((out * weight).sum(), list(parameters.values()), allow_unused=True)
    largest = max(w.abs().max() for w in wanted if w is not None)
    for name, got, ref in zip(parameters, found, wanted, strict=True):
        ref = torch.zeros_like(parameters[name]) if ref is None else ref
        got = torch.zeros_like(parameters[name]) if got is None else got
        off = (got.double() - ref.double()).abs().max() / largest
        assert off.item() <= BOUND, (name, off.item())
    return len(modules)


@pytest.mark.parametrize(
    ("case", "sizes"),
    [(c, DISTINCT) for c in POSITIVES] + [(c, EQUAL) for c in SOME[::2]],
    ids=lambda x: x.name if hasattr(x, "name") else "equal" if x is EQUAL else "distinct",
)
def test_positive(case, sizes):
    model = case.model(sizes)
    if case.needs == "bare":
        inputs = case.inputs(sizes)
        capture, modules = softmax_capture(model, inputs)
        assert len(modules) == 1
        assert error(capture(*inputs), model(*inputs)) <= BOUND
    else:
        check(model, case.inputs(sizes))


@pytest.mark.parametrize("case", MASKED, ids=str)
def test_row_without_any_key(case):
    """Whatever eager makes of an empty row (a mean, zero, NaN): the rewrite makes the same."""
    model, inputs = case.model(), case.inputs(empty=True)
    # the eager fast path of nn.MultiheadAttention gives NaN where its own graph gives 0
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad():
        want = first(model(*inputs))
        torch.backends.mha.set_fastpath_enabled(True)
        capture, modules = softmax_capture(model, inputs)
        assert len(modules) == 1
        assert error(first(capture(*inputs)), want) <= BOUND


@pytest.mark.parametrize("case", [c for c in SOME if c.needs != "sequence"], ids=str)
def test_symbolic_batch(case):
    model, inputs = case.model(), case.inputs()
    for x in inputs:
        if x is not None:
            torch._dynamo.maybe_mark_dynamic(x, 0)
    capture, modules = softmax_capture(model, inputs)
    assert len(modules) == 1
    with torch.no_grad():
        for batch in (3, 5):
            more = case.inputs(batch=batch)
            assert error(first(capture(*more)), first(model(*more))) <= BOUND
    assert len(capture.graphs) == 1


@pytest.mark.parametrize("case", PLAIN[::3], ids=str)
def test_all_sizes_symbolic(case):
    model = case.model()
    capture, modules = softmax_capture(model, case.inputs(), dynamic=True)
    assert len(modules) == 1
    with torch.no_grad():
        x = torch.randn(3, 8, DISTINCT.D)
        assert error(first(capture(x)), first(model(x))) <= BOUND
    assert len(capture.graphs) == 1


def test_mask_merged_by_multihead_attention():
    """With T = B H, a factor of the mask alone fits the view that was meant for the whole."""
    from models import Multihead, Sizes

    sizes = Sizes(B=2, H=4, T=8)
    model = Multihead(sizes, causal=True, need_weights=False).eval()
    x, mask = torch.randn(2, 8, sizes.D), torch.ones(2, 8, dtype=torch.bool)
    mask[1, 5:] = False
    check(model, (x, mask), sites=None)


@pytest.mark.parametrize("case", SOME, ids=str)
def test_bfloat16(case):
    """No worse than eager bfloat16 is, against float64 of the same rounded weights."""
    model = case.model().bfloat16()
    inputs = case.inputs(dtype=torch.bfloat16)
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        want = first(exact(*cast(inputs, torch.float64)))
        eager = first(model(*inputs))
        capture, modules = softmax_capture(model, inputs)
        assert len(modules) == 1
        out = first(capture(*inputs))
    assert out.dtype == eager.dtype
    # one output rounding (2^-8) beside eager's own error
    assert error(out, want) <= 1.5 * error(eager, want) + 2**-8


@pytest.mark.parametrize("case", IMPOSTORS, ids=str)
def test_impostor_keeps_its_numbers(case):
    model = case.model()
    exact = cast(case.inputs(), torch.float64)
    assert copy.deepcopy(model).double()(*exact).isfinite().all()
    check(model, case.inputs(), sites=None)


@pytest.mark.parametrize("case", WRITTEN, ids=str)
def test_written_in_place(case):
    """A write through a view or beside the logits is honoured, or the site declined."""
    check(case.model(), case.inputs(), sites=None)


@pytest.mark.parametrize("name", ["values_written", "added_out"])
def test_written_without_gradients(name):
    """What autograd refuses: values written after their use, a sum written with ``out=``."""
    import models

    model, x = Attention(getattr(models, name)).eval(), torch.randn(2, 5, DISTINCT.D)
    with torch.no_grad():
        check(model, (x,), sites=None)


@pytest.mark.parametrize("case", CUT_GRADIENTS, ids=str)
def test_gradients_stay_cut(case):
    model, inputs = case.model().train(), case.inputs()
    check(model, inputs, sites=None)


def test_attention_on_attention():
    """The second site reads the first one's output directly: it must read the rewritten one."""
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    class Raw(torch.nn.Module):
        def forward(self, x):
            y = sdpa(x, x, x)
            return sdpa(y, y, y)

    x = torch.randn(2, 4, 5, 6)
    model = Raw().eval()
    capture = attnpass.Capture(model).trace(x)
    assert len(capture.sites) == 2
    modules = {s.name: forms.build("sigmoid", s, {}) for s in capture.sites}
    capture.use_modules(modules)
    one, two = (modules[s.name] for s in capture.sites)
    y = one(x, x, x)
    assert error(capture(x), two(y, y, y)) <= BOUND


def test_every_block_of_a_stack():
    model, x = Stack(3).eval(), torch.randn(2, 5, DISTINCT.D)
    check(model, (x,), sites=3)


def test_same_site_with_another_mask_in_a_second_graph():
    """One module, captured with and without a causal mask: each graph keeps its own."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = Attention(
                lambda q, k, v, m, mod: torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, is_causal=mod.causal
                )
            )

        def forward(self, x, causal):
            self.attn.causal = causal
            return self.attn(x)

    model, x = Model().eval(), torch.randn(2, 5, DISTINCT.D)
    capture = attnpass.Capture(model)
    with torch.no_grad():
        capture.trace(x, False)
        capture.trace(x, True)
        plan = capture.plan(
            {s.name: attnpass.plan.Entry("sigmoid", {}, s.fits()) for s in capture.sites}
        )
        capture.use(plan)
        changed = x.clone()
        changed[:, -1] += 1
        one, two = capture(x, True), capture(changed, True)
    assert torch.equal(one[:, :-1], two[:, :-1]), "a causal graph sees the future"


def test_training_capture_does_not_drop_in_evaluation():
    from models import dropped

    model, x = Attention(dropped).train(), torch.randn(2, 5, DISTINCT.D)
    capture = attnpass.Capture(model).trace(x)
    plan = capture.plan(
        {s.name: attnpass.plan.Entry("softmax", {}, s.fits()) for s in capture.sites}
    )
    plan.round_trip = True
    assert len(capture.use(plan)) == 1
    model.eval()
    with torch.no_grad():
        assert error(capture(x), model(x)) <= BOUND


def test_autocast():
    model, x = Stack(2).eval(), torch.randn(2, 5, DISTINCT.D)

    class Cast(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.inner(x)

    outer = Cast().eval()
    with torch.no_grad():
        want = copy.deepcopy(model).double()(x.double())
        eager = outer(x)
        capture, modules = softmax_capture(outer, (x,))
        assert len(modules) == 2
        out = capture(x)
    assert out.dtype == eager.dtype == torch.bfloat16
    assert error(out, want) <= 1.5 * error(eager, want) + 2**-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_task_is_equal_after_the_round_trip(dtype):
    task = load_task(TINY)
    task.model, task.example = task.model.to(dtype), cast(task.example, dtype)
    found = check_roundtrip(task)
    assert found.equal and found.all <= found.allowed and len(found.sites) == 3
    assert (found.allowed == BOUND) == (dtype == torch.float32)
    assert found.as_dict()["sites"] == found.sites


def test_a_site_that_is_read_wrong_is_not_equal(monkeypatch):
    build = forms.build

    def wrong(form, site, *given, **options):
        module = build(form, site, *given, **options)
        module.register_forward_hook(lambda m, x, out: out * 1.01)
        return module

    monkeypatch.setattr(forms, "build", wrong)
    found = check_roundtrip(load_task(TINY))
    assert not found.equal and all(error > BOUND for error in found.sites.values())
