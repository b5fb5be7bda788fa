"""One graph on its way through the pass: the plan's forms, regions, sizes, gradients."""

import pytest
import torch
from compiling import (
    BOUND,
    FORMS,
    INNER,
    Counted,
    build,
    captured,
    compiled,
    data,
    error,
    make_plan,
)
from models import Block, dropped, pad_masked_fill
from torch import nn
from torch._dynamo.backends.debugging import aot_eager

import attnpass
from attnpass import Plan
from attnpass.errors import PlanError


@pytest.mark.parametrize(
    ("form", "inner"), [("sigmoid", "aot_eager"), *((f, "eager") for f in FORMS)]
)
def test_inference_is_capture(form, inner):
    model, x = build(3), data()
    plan = make_plan(model, x, form, form_options={"r": 1} if form == "skipat" else None)
    with torch.no_grad():
        want = captured(model, plan, x)(x)
        got = compiled(model, inner, plan=plan)(x)
        assert error(got, want) <= BOUND
        assert error(got, model(x)) > 1e-3


@pytest.mark.parametrize(
    ("form", "inner"), [("sigmoid", "eager"), *((f, "aot_eager") for f in FORMS)]
)
def test_gradients_are_those_of_capture_and_reach_the_plan(form, inner):
    model, x = build(3).train(), data()
    plan = make_plan(model, x, form, form_options={"r": 1} if form == "skipat" else None)
    weights = [*model.parameters(), *plan.parameters()]
    own = list(plan.parameters())
    assert own

    def gradients(run):
        return torch.autograd.grad(run(x).square().sum(), weights, allow_unused=True)

    want = gradients(captured(model, plan, x))
    got = gradients(compiled(model, inner, plan=plan))
    largest = max(g.abs().max() for g in want if g is not None)
    for a, b in zip(got, want, strict=True):
        assert (a is None or not a.any()) == (b is None or not b.any())
        if b is not None and a is not None:
            assert ((a - b).abs().max() / largest).item() <= BOUND
    assert sum(g is not None and bool(g.any()) for g in got[-len(own) :]) > len(own) // 2


@pytest.mark.parametrize("form", ["sigmoid", "relu", "hydra", "skipat", "softmax"])
def test_bare_form_is_the_form_at_its_start(form):
    model, x = build(2), data()
    with torch.no_grad():
        got = compiled(model, form=form)(x)
        plan = Plan.create(model, x, form=form)
        assert error(got, captured(model, plan, x)(x)) <= BOUND
    report = attnpass.compiled_report()
    wanted = {"blocks.1.attn"} if form == "skipat" else {"blocks.0.attn", "blocks.1.attn"}
    assert {n for n, f in report.rewritten.items() if f == form} == wanted


def test_sites_select():
    model, x = build(3), data()
    with torch.no_grad():
        got = compiled(model, form="relu", sites=["blocks.1.*"])(x)
        plan = Plan.create(model, x, form="relu", sites="blocks.1.*")
        assert error(got, captured(model, plan, x)(x)) <= BOUND
    assert attnpass.compiled_report().rewritten == {"blocks.1.attn": "relu"}


@pytest.mark.parametrize("form", ["sigmoid", "hydra"])
def test_changing_sizes_compile_at_most_thrice(form):
    """Once for the first sizes, then symbolic in batch, then in tokens: any size runs rightly."""
    model, counted = build(1), Counted(compiler=aot_eager)
    plan = make_plan(model, data(), form)
    run = compiled(model, counted, plan=plan)
    reference = attnpass.Capture(model, dynamic=True).trace(data(3, 4))
    reference.use(plan)
    with torch.no_grad():
        for batch, tokens in ((2, 5), (3, 5), (4, 7), (6, 9), (3, 11)):
            x = data(batch, tokens)
            assert error(run(x), reference(x)) <= BOUND
    assert len(counted.graphs) <= 3


@pytest.mark.parametrize("form", ["relu", "softmax"])
def test_dynamic_from_the_start(form):
    model, counted = build(2, core=pad_masked_fill), Counted()
    run = torch.compile(
        model,
        backend="attnpass",
        dynamic=True,
        options={"inner": counted, "form": form},
    )
    with torch.no_grad():
        for batch, tokens in ((2, 5), (3, 7), (5, 9)):
            x, mask = data(batch, tokens), torch.ones(batch, tokens, dtype=torch.bool)
            mask[0, tokens - 2 :] = False
            plan = Plan.create(model, x, mask, form=form)
            got = run(x, mask)
            assert error(got, captured(model, plan, x, mask)(x, mask)) <= BOUND
    assert len(counted.graphs) == 1
    assert attnpass.compiled_report().rewritten.keys() == {"blocks.0.attn", "blocks.1.attn"}


def test_autocast_region():
    model, x = build(2), data()

    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.inner(x)

    outer = Cast().eval()
    with torch.no_grad():
        got = compiled(outer, "aot_eager", form="sigmoid")(x)
        want = captured(model, Plan.create(model, x, form="sigmoid"), x)(x)
    assert got.dtype == torch.bfloat16
    # bfloat16 has 8 bits: a few roundings of 2^-9 each
    assert error(got, want) <= 2**-5
    assert len(attnpass.compiled_report().rewritten) == 2


@pytest.mark.parametrize("inner", INNER)
def test_no_grad_region_keeps_gradients_out(inner):
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Block(), Block()

        def forward(self, x):
            with torch.no_grad():
                x = self.first(x)
            return self.second(x)

    torch.manual_seed(0)
    model, x = Frozen().train(), data()
    plan = make_plan(model, x, "relu")
    out = compiled(model, inner, plan=plan)(x)
    out.sum().backward()
    assert all(p.grad is None for p in model.first.parameters())
    assert model.second.attn.q.weight.grad is not None
    assert all(p.grad is None or not p.grad.any() for p in plan.values["first.attn"].values())
    assert any(p.grad is not None for p in plan.values["second.attn"].values())
    assert error(out, captured(model, plan, x)(x)) <= BOUND


def test_checkpointed_body_stays_right():
    from torch.utils.checkpoint import checkpoint

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block()

        def forward(self, x):
            return checkpoint(self.block, x, use_reentrant=False)

    torch.manual_seed(0)
    model, x = Model().train(), data()
    out = compiled(model, "aot_eager", form="softmax")(x)
    assert error(out, model(x)) <= BOUND
    report = attnpass.compiled_report()
    assert len(report.sites) + len(report.declined) == 1


def test_dropout_in_training_needs_leave():
    model, x = build(2, core=dropped).train(), data()
    compiled(model, form="sigmoid")(x)
    report = attnpass.compiled_report()
    assert set(report.rewritten.values()) <= {"softmax"}
    assert {d.code for d in report.declined} == {"DROPOUT_TRAINING"}
    attnpass.reset_report()
    compiled(model, form="sigmoid", allow=["drop_dropout"])(x)
    assert set(attnpass.compiled_report().rewritten.values()) == {"sigmoid"}


def test_bare_form_warns_that_it_trains_no_parameters(warnings_):
    model, x = build(2).train(), data()
    compiled(model, form="sigmoid")(x).sum().backward()
    assert any("no trainable parameters" in w for w in warnings_())
    assert all(p.grad is not None for p in model.head.parameters())


def test_plan_in_training_does_not_warn(warnings_):
    model, x = build(2).train(), data()
    plan = Plan.create(model, x, form="sigmoid")
    compiled(model, plan=plan)(x).sum().backward()
    assert warnings_() == []


def test_a_batch_as_large_as_the_length_is_no_other_attention():
    """Both sizes are one symbol then, and torch leaves lengths such as ``s**2 // s``."""
    model, x = build(1), data()
    plan = make_plan(model, x, "sigmoid")
    attnpass.reset_report()
    options = {"inner": "eager", "plan": plan, "strict": True}
    run = torch.compile(model, backend="attnpass", options=options, dynamic=True)
    square = x[:1, :3].expand(3, 3, -1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        run(square)
    assert list(attnpass.compiled_report().rewritten.values()) == ["sigmoid"]


@pytest.mark.parametrize("strict", [True, False])
def test_a_layer_that_comes_later_and_does_not_fit_is_said_or_raised(strict, warnings_):
    """The first block stays softmax; its graph also serves the second, whose entry differs."""
    torch._dynamo.reset()
    model, x = build(2), data()
    plan = make_plan(model, x, "sigmoid", sites="*.1.*")
    (changed,) = [e for e in plan.sites.values() if e.changes]
    changed.fits = {**changed.fits, "heads": 3}
    for block in model.blocks:
        options = {"inner": "eager", "plan": plan, "strict": strict}
        block.compile(backend="attnpass", options=options)
    with torch.no_grad():
        if strict:
            with pytest.raises(PlanError, match="heads 3"):
                model(x)
        else:
            assert error(model(x), build(2)(x)) < BOUND
            assert "heads 3" in " ".join(warnings_())


class Mixed(nn.Module):
    """Attention whose weights are shared out again over the queries, where it is asked to."""

    def __init__(self):
        super().__init__()
        self.qkv, self.odd = nn.Linear(24, 72), False

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        weights = (q @ k.mT * 0.2).softmax(-1)
        return x + (weights.mT.softmax(-1) if self.odd else weights) @ v


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("regional", [True, False])
@pytest.mark.parametrize("odd", [(0, 1), (1,)])
def test_a_site_that_a_graph_passes_over_is_said_or_raised(odd, regional, strict, warnings_):
    torch._dynamo.reset()
    model, x = nn.Sequential(Mixed(), Mixed()).eval(), data()
    plan = make_plan(model, x, "sigmoid", sites="1")
    for i in odd:
        model[i].odd = True
    options = {"inner": "eager", "plan": plan, "strict": strict}
    for part in model if regional else [model]:
        part.compile(backend="attnpass", options=options)
    with torch.no_grad():
        if strict:
            with pytest.raises(Exception, match="expected the attention 1 in a graph that takes"):
                model(x)
        else:
            model(x)
            model(x)
            told = [w for w in warnings_() if "expected the attention 1 in a graph" in w]
            assert len(told) == 1


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # Dynamo's own
def test_layers_of_one_function_may_have_different_forms():
    """In training the second block is compiled anew: its input has a gradient."""
    torch._dynamo.reset()
    model, x = build(2).train(), data()
    plan = make_plan(model, x, "sigmoid")
    other = make_plan(model, x, "relu")
    first, second = plan.sites
    plan.sites[second], plan.values[second] = other.sites[second], other.values[second]
    want = captured(model, plan, x)(x)
    for block in model.blocks:
        block.compile(backend="attnpass", options={"inner": "eager", "plan": plan, "strict": True})
    assert error(model(x), want) < BOUND
    with torch.no_grad():
        assert error(model(x), want) < BOUND
