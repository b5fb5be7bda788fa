"""``torch.compile(model, backend="attnpass")``: the same as ``Capture`` under the same plan."""

import logging

import pytest
import torch
from models import DISTINCT, Attention, Block, Stack, dropped, mul_after, pad_masked_fill
from torch import nn
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.exc import BackendCompilerFailed

import attnpass
from attnpass import Plan, forms
from attnpass.compiled import variant
from attnpass.errors import OptionError, PlanError
from attnpass.matching import matched

BOUND = 1e-5
INNER = ("eager", "aot_eager")
FORMS = ("sigmoid", "relu", "hydra", "skipat")


def data(batch=2, tokens=5):
    return torch.randn(batch, tokens, DISTINCT.D, generator=torch.Generator().manual_seed(batch))


def error(got, want):
    assert got.shape == want.shape
    got, want = got.detach().double(), want.detach().double()
    return ((got - want).abs().max() / want.abs().max()).item()


def build(depth=2, **kwargs):
    torch.manual_seed(3)
    return Stack(depth, **kwargs).eval()


def shaken(plan):
    """The plan with parameters away from their start, other ones at every site."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in plan.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    return plan


def make_plan(model, x, form="sigmoid", **kwargs):
    return shaken(Plan.create(model, x, form=form, **kwargs))


def captured(model, plan, *inputs):
    """The reference: the model under the plan, captured without any break."""
    capture = attnpass.Capture(model).trace(*inputs)
    assert set(capture.use(plan)) == {n for n, e in plan.sites.items() if e.form != "softmax"}
    return capture


def compiled(model, inner="eager", **options):
    return torch.compile(model, backend="attnpass", options={"inner": inner, **options})


class Counted:
    """An inner compiler that counts graphs; it runs them as they are unless told otherwise."""

    def __init__(self, compiler=None):
        self.graphs, self.compiler = [], compiler

    def __call__(self, gm, inputs):
        self.graphs.append(gm)
        return self.compiler(gm, inputs) if self.compiler else gm.forward


def attention_calls(gm):
    return sum("softmax" in str(n.target) or "scaled_dot" in str(n.target) for n in gm.graph.nodes)


@pytest.fixture
def warnings_(caplog):
    caplog.set_level(logging.WARNING, logger="attnpass")

    def read():
        return [r.getMessage() for r in caplog.records if r.name == "attnpass"]

    return read


# --- the same as Capture


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


@pytest.mark.parametrize("inner", INNER)
def test_a_changed_parameter_is_seen_by_compiled_code(inner):
    model, x = build(2), data()
    plan = make_plan(model, x)
    run = compiled(model, inner, plan=plan)
    with torch.no_grad():
        before = run(x)
        next(iter(plan.parameters())).add_(1.0)
        after = run(x)
        assert error(after, before) > 1e-4
        assert error(after, captured(model, plan, x)(x)) <= BOUND


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


def test_plan_from_a_file(tmp_path):
    model, x = build(2), data()
    plan = make_plan(model, x)
    path = plan.save(tmp_path / "plan.json")
    with torch.no_grad():
        got = compiled(model, plan=str(path))(x)
        assert error(got, captured(model, plan, x)(x)) <= BOUND


def test_sites_select():
    model, x = build(3), data()
    with torch.no_grad():
        got = compiled(model, form="relu", sites=["blocks.1.*"])(x)
        plan = Plan.create(model, x, form="relu", sites="blocks.1.*")
        assert error(got, captured(model, plan, x)(x)) <= BOUND
    assert attnpass.compiled_report().rewritten == {"blocks.1.attn": "relu"}


# --- shapes


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


# --- graph breaks, regional compilation


def two_of_six(model, x, form="relu"):
    """A plan that converts layers 1 and 4 of six, with parameters of their own."""
    return shaken(Plan.create(model, x, form=form, sites=["blocks.1.*", "blocks.4.*"]))


def six(broken=False, **kwargs):
    model = build(6, **kwargs)
    for block in model.blocks:
        block.broken = broken
    return model


@pytest.mark.parametrize(("form", "inner"), [("relu", "eager"), ("sigmoid", "aot_eager")])
def test_graph_breaks_every_layer_its_own_form(form, inner):
    model, x = six(), data()
    plan = two_of_six(model, x, form)
    with torch.no_grad():
        want = captured(model, plan, x)(x)
        for block in model.blocks:
            block.broken = True
        torch._dynamo.reset()
        got = compiled(model, inner, plan=plan)(x)
        assert error(got, want) <= BOUND
        assert error(got, model(x)) > 1e-3


def test_plan_made_on_a_model_with_graph_breaks():
    """One graph serves all layers, yet every layer is a site of its own, named by its path."""
    model, x = six(), data()
    whole = two_of_six(model, x)
    for block in model.blocks:
        block.broken = True
    report = attnpass.find_sites(model, x)
    assert [s.name for s in report.sites] == [f"blocks.{i}.attn" for i in range(6)]
    assert report.graphs < 6
    plan = Plan.create(model, x, form="relu", sites=["blocks.1.*", "blocks.4.*"])
    assert plan.sites.keys() == whole.sites.keys()
    assert plan.structure == whole.structure
    plan.values = whole.values
    with torch.no_grad():
        want = captured(model, whole, x)(x)
        torch._dynamo.reset()
        assert error(captured(model, plan, x)(x), want) <= BOUND
        torch._dynamo.reset()
        assert error(compiled(model, plan=plan)(x), want) <= BOUND
        assert error(want, model(x)) > 1e-3


@pytest.mark.parametrize(("form", "inner"), [("hydra", "eager"), ("sigmoid", "aot_eager")])
def test_regional_compile_every_layer_its_own_form(form, inner):
    model, x = six(), data()
    plan = two_of_six(model, x, form)
    with torch.no_grad():
        want = captured(model, plan, x)(x)
        for block in model.blocks:
            block.compile(backend="attnpass", options={"inner": inner, "plan": plan})
        assert error(model(x), want) <= BOUND


def test_regional_compile_of_the_attention_itself():
    model, x = six(), data()
    plan = two_of_six(model, x)
    with torch.no_grad():
        want = captured(model, plan, x)(x)
        for block in model.blocks:
            block.attn.compile(backend="attnpass", options={"inner": "eager", "plan": plan})
        assert error(model(x), want) <= BOUND


# Dynamo itself looks at .grad of every input, here at the output of the block before
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_regional_training_gradients():
    model, x = six().train(), data()
    plan = two_of_six(model, x)
    weights = [*model.parameters(), *plan.parameters()]
    want = torch.autograd.grad(
        captured(model, plan, x)(x).square().sum(), weights, allow_unused=True
    )
    for block in model.blocks:
        block.compile(backend="attnpass", options={"inner": "aot_eager", "plan": plan})
    got = torch.autograd.grad(model(x).square().sum(), weights, allow_unused=True)
    used = [(a, b) for a, b in zip(got, want, strict=True) if b is not None]
    largest = max(b.abs().max() for _, b in used)
    assert len(used) == 6 * 10 + 2 + 2 * 3  # blocks, head, two sites of the plan
    assert max(((a - b).abs().max() / largest).item() for a, b in used) <= BOUND


def test_blocks_beside_a_top_level_site_of_the_same_inner_name():
    """The inner path ``attn`` of a block is also the path of a site at the top of the model."""

    class Model(Stack):
        def __init__(self):
            super().__init__(3)
            self.attn = Attention(mul_after)

        def forward(self, x):
            return super().forward(x + self.attn(x))

    torch.manual_seed(0)
    model, x = Model().eval(), data()
    plan = shaken(Plan.create(model, x, form="relu", sites=["attn", "blocks.1.*"]))
    with torch.no_grad():
        want = captured(model, plan, x)(x)
        for block in model.blocks:
            block.compile(backend="attnpass", options={"inner": "eager", "plan": plan})
        model.attn.compile(backend="attnpass", options={"inner": "eager", "plan": plan})
        assert error(model(x), want) <= BOUND


class Unprojected(nn.Module):
    """Keys and values are the input itself: half of a site's identity lies outside the block."""

    def __init__(self):
        super().__init__()
        self.q, self.norm = nn.Linear(DISTINCT.D, DISTINCT.D), nn.LayerNorm(DISTINCT.D)

    def forward(self, x):
        y = self.norm(x)
        return x + (self.q(y) @ y.mT * 0.3).softmax(-1) @ y


class Weightless(nn.Module):
    """No parameter at all: nothing identifies the layer."""

    def forward(self, x):
        return x + (x @ x.mT * 0.3).softmax(-1) @ x


class PreScaled(nn.Module):
    """Values are the block's input: in the whole model they come from the layer before."""

    def __init__(self):
        super().__init__()
        self.q, self.k = (nn.Linear(DISTINCT.D, DISTINCT.D) for _ in range(2))

    def forward(self, x):
        return x + (self.q(x) @ self.k(x).mT * 0.3).softmax(-1) @ x


class Chain(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.blocks = nn.ModuleList(kind() for _ in range(4))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("kind", [Unprojected, Weightless, PreScaled])
def test_layers_that_cannot_be_told_apart_are_never_confused(kind, layer):
    """Right form at the right layer, or the model unchanged: never another layer's form."""
    torch.manual_seed(0)
    model, x = Chain(kind).eval(), data()
    plan = Plan.create(model, x, form="sigmoid", sites=[f"blocks.{layer}*"])
    with torch.no_grad():
        eager, want = model(x), captured(model, plan, x)(x)
        assert error(want, eager) > 1e-3
        for block in model.blocks:
            block.compile(backend="attnpass", options={"inner": "eager", "plan": plan})
        got = model(x)
    assert min(error(got, want), error(got, eager)) <= BOUND


def test_weightless_layers_beside_others():
    """Some layers of the model have weights, so the plan knows owners; these have none."""

    class Model(Chain):
        def __init__(self):
            super().__init__(Weightless)
            self.first = Block()

        def forward(self, x):
            return super().forward(self.first(x))

    torch.manual_seed(0)
    model, x = Model().eval(), data()
    plan = Plan.create(model, x, form="sigmoid", sites=["blocks.0"])
    with torch.no_grad():
        eager, want = model(x), captured(model, plan, x)(x)
        for block in model.blocks:
            block.compile(backend="attnpass", options={"inner": "eager", "plan": plan})
        got = model(x)
    assert min(error(got, want), error(got, eager)) <= BOUND


def test_layers_that_share_a_projection():
    """One value projection for all layers."""
    model, x = six(), data()
    for block in model.blocks[1:]:
        block.attn.v = model.blocks[0].attn.v
    plan = two_of_six(model, x)
    with torch.no_grad():
        want = captured(model, plan, x)(x)
        for block in model.blocks:
            block.compile(backend="attnpass", options={"inner": "eager", "plan": plan})
        assert error(model(x), want) <= BOUND


@pytest.mark.parametrize("whole", [True, False], ids=["breaks", "regional"])
def test_loaded_plan_that_was_not_bound_declines(whole, tmp_path, warnings_):
    model, x = six(), data()
    path = two_of_six(model, x).save(tmp_path / "plan.json")
    plan = Plan.load(path)
    torch._dynamo.reset()
    with torch.no_grad():
        eager = model(x)
        if whole:
            for block in model.blocks:
                block.broken = True
            got = compiled(model, plan=plan)(x)
        else:
            for block in model.blocks:
                block.compile(backend="attnpass", options={"inner": "eager", "plan": plan})
            got = model(x)
        assert error(got, eager) <= BOUND
    report = attnpass.compiled_report()
    assert {d.code for d in report.declined} == {"SHARED_GRAPH"}
    assert report.rewritten == {}
    assert any("bind" in w for w in warnings_())


def test_bound_plan_runs_every_layer(tmp_path):
    model, x = six(), data()
    plan = two_of_six(model, x)
    path = plan.save(tmp_path / "plan.json")
    with torch.no_grad():
        want = captured(model, plan, x)(x)
        loaded = Plan.load(path).bind(model, x)
        torch._dynamo.reset()
        for block in model.blocks:
            block.compile(backend="attnpass", options={"inner": "eager", "plan": loaded})
        assert error(model(x), want) <= BOUND


def test_declined_graph_still_goes_to_the_inner_compiler(tmp_path):
    model, x = six(), data()
    plan = Plan.load(two_of_six(model, x).save(tmp_path / "plan.json"))
    counted = Counted()
    torch._dynamo.reset()
    with torch.no_grad():
        for block in model.blocks:
            block.compile(backend="attnpass", options={"inner": counted, "plan": plan})
        model(x)
    assert counted.graphs


def test_sites_glob_across_graph_breaks():
    """A graph without the globbed site is no reason to stop the run."""
    model, x = build(2), data()
    plan = Plan.create(model, x, form="relu", sites="blocks.0.*")

    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks, self.head = model.blocks, model.head

        def forward(self, x):
            x = self.blocks[0](x)
            torch._dynamo.graph_break()
            return self.head(self.blocks[1](x))

    with torch.no_grad():
        want = captured(model, plan, x)(x)
        torch._dynamo.reset()
        got = compiled(Broken().eval(), form="relu", sites=["blocks.0.*"])(x)
    assert error(got, want) <= BOUND


# --- several at once


def test_configurations_in_one_process():
    model, x = build(2), data()
    with torch.no_grad():
        eager = model(x)
        wanted = {}
        for form in ("relu", "hydra"):
            wanted[form] = captured(model, Plan.create(model, x, form=form), x)(x)
        runs = {form: compiled(model, form=form) for form in wanted}
        plain = compiled(model)
        for _ in range(2):
            for form, run in runs.items():
                assert error(run(x), wanted[form]) <= BOUND
            assert error(plain(x), eager) <= BOUND


def test_two_plans_and_two_models_of_one_class():
    one, two, x = build(2), build(2), data()
    with torch.no_grad():
        for parameter in two.parameters():
            parameter += 0.1
        plans = [make_plan(m, x, f) for m, f in ((one, "relu"), (two, "sigmoid"))]
        wanted = [captured(m, p, x)(x) for m, p in zip((one, two), plans, strict=True)]
        runs = [compiled(m, plan=p) for m, p in zip((one, two), plans, strict=True)]
        for _ in range(2):
            for run, want in zip(runs, wanted, strict=True):
                assert error(run(x), want) <= BOUND


def test_shared_module_and_module_called_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block()
            self.again = self.block

        def forward(self, x):
            return self.again(self.block(self.block(x)))

    torch.manual_seed(0)
    model, x = Twice().eval(), data()
    plan = Plan.create(model, x, form="relu")
    names = list(plan.sites)
    assert len(names) == 3
    plan.sites[names[1]].form = "softmax"
    plan.values.pop(names[1], None)
    plan = shaken(plan)
    with torch.no_grad():
        want = captured(model, plan, x)(x)
        got = compiled(model, plan=plan)(x)
        assert error(got, want) <= BOUND


# --- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"from": "relu"}, "expected options of form, form_options, plan.*got from"),
        ({"form": "linear"}, "expected a form of softmax, sigmoid.*'linear'"),
        ({"form": "relu", "form_options": {"beta": 1}}, "expected options of form relu.*beta"),
        ({"form": "relu", "plan": Plan({})}, "either 'form' or 'plan'.*both"),
        ({"form": "relu", "allow": ["all"]}, "expected 'allow' of other_weights.*all"),
        ({"form": "relu", "mode": "fast"}, "expected 'mode' of default.*'fast'"),
        ({"form": "relu", "inner": "onnx"}, "expected 'inner' of inductor.*'onnx'"),
        (
            {"form": "relu", "sites": ["x.*"], "strict": True},
            "expected a glob that matches.*'x\\.\\*'",
        ),
        ({"plan": 3}, "expected 'plan' to be a Plan or a path, got int"),
        ({"plan": "/no/such/plan.json"}, "expected a plan file at /no/such/plan.json"),
        ({"form_options": {"h": "relu"}}, "expected 'form' beside 'form_options'"),
        ({"form": "relu", "form_options": 3}, "expected"),
        ({"form": "relu", "sites": 3}, "expected"),
        ({"form": "relu", "form_options": {"h": "tanh"}}, "expected h in"),
        ({"form": "relu", "form_options": {"alpha": "x"}}, "expected"),
        ({"form": "skipat", "form_options": {"r": "big"}}, "expected"),
        ({"form": "skipat", "form_options": {"kernel": 4}}, "odd kernel"),
    ],
    ids=lambda x: (
        "" if isinstance(x, str) else next(iter(x)) + "-" + str(list(x.values())[-1])[:9]
    ),
)
def test_wrong_option(options, message):
    """One clear line: OptionError or PlanError, never a bare TypeError, never a silent run."""
    model, x = build(2), data()
    given = {"inner": "eager", **options}
    with pytest.raises(BackendCompilerFailed, match=message) as caught:
        torch.compile(model, backend="attnpass", options=given)(x)
    assert isinstance(caught.value.inner_exception, (OptionError, PlanError))


def test_mode_as_argument_is_checked():
    with pytest.raises(BackendCompilerFailed, match="expected 'mode' of"):
        torch.compile(build(2), backend="attnpass", mode="fast")(data())


# --- untouched


def test_no_options_is_untouched():
    model, x, counted = build(2), data(), Counted()
    with torch.no_grad():
        got = torch.compile(model, backend="attnpass", options={"inner": counted})(x)
        assert torch.equal(got, model(x))
    (graph,) = counted.graphs
    assert "softmax" in {
        n.target if isinstance(n.target, str) else n.name for n in graph.graph.nodes
    }
    assert attnpass.compiled_report().graphs == 0


def test_disabled_by_the_environment(monkeypatch):
    monkeypatch.setenv("ATTNPASS_DISABLE", "1")
    model, x, counted = build(2), data(), Counted()
    with torch.no_grad():
        got = compiled(model, counted, form="relu")(x)
        assert torch.equal(got, model(x))
    assert attention_calls(counted.graphs[0]) == 2


def test_model_without_attention_is_untouched(warnings_):
    model, counted = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), Counted()
    x = torch.randn(2, 4)
    with torch.no_grad():
        assert torch.equal(compiled(model, counted, form="relu")(x), model(x))
    assert len(counted.graphs) == 1


# --- regions


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


@pytest.mark.parametrize("strict", [False, True])
def test_internal_error_falls_back_or_raises(strict, monkeypatch, warnings_):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(matched, "match", broken)
    model, x, counted = build(2), data(), Counted()
    run = compiled(model, counted, form="relu", strict=strict)
    if strict:
        with pytest.raises(BackendCompilerFailed, match="planted"):
            run(x)
        return
    with torch.no_grad():
        assert torch.equal(run(x), model(x))
    (decline,) = attnpass.compiled_report().declined
    assert decline.code == "INTERNAL_ERROR" and "planted" in decline.hint
    assert any("unchanged" in w for w in warnings_())
    assert attention_calls(counted.graphs[0]) == 2


def test_rewrite_error_falls_back(monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(variant, "rewrite", broken)
    model, x = build(2), data()
    with torch.no_grad():
        assert torch.equal(compiled(model, form="relu")(x), model(x))
    assert {d.code for d in attnpass.compiled_report().declined} == {"INTERNAL_ERROR"}


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


# --- training


def test_dropout_in_training_needs_leave():
    model, x = build(2, core=dropped).train(), data()
    compiled(model, form="sigmoid")(x)
    report = attnpass.compiled_report()
    assert set(report.rewritten.values()) <= {"softmax"}
    assert {d.code for d in report.declined} == {"DROPOUT_TRAINING"}
    attnpass.reset_report()
    compiled(model, form="sigmoid", allow=["drop_dropout"])(x)
    assert set(attnpass.compiled_report().rewritten.values()) == {"sigmoid"}


def test_bare_form_warns_that_its_parameters_are_frozen(warnings_):
    model, x = build(2).train(), data()
    compiled(model, form="sigmoid")(x).sum().backward()
    assert any("frozen" in w for w in warnings_())
    assert all(p.grad is not None for p in model.head.parameters())


def test_plan_in_training_does_not_warn(warnings_):
    model, x = build(2).train(), data()
    plan = Plan.create(model, x, form="sigmoid")
    compiled(model, plan=plan)(x).sum().backward()
    assert warnings_() == []


def test_training_learns():
    """A few steps on plan and model: the loss falls, and the compiled code sees the updates."""
    model, x = build(2).train(), data(4)
    plan = Plan.create(model, x, form="relu")
    run = compiled(model, "aot_eager", plan=plan)
    optimiser = torch.optim.Adam([*model.parameters(), *plan.parameters()], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = run(x).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        assert error(run(x), captured(model, plan, x)(x)) <= BOUND


@pytest.mark.parametrize("form", forms.OPTIONS)
def test_explain_says_what_the_backend_does(form):
    model, x = build(2), data()
    with torch.no_grad():
        said = attnpass.explain(model, x, form=form)
        compiled(model, form=form)(x)
    assert said.rewritten == attnpass.compiled_report().rewritten
