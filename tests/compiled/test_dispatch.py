"""One graph, many layers: every call runs the form of the layer whose parameters it brings."""

import pytest
import torch
from compiling import (
    BOUND,
    Counted,
    build,
    captured,
    compiled,
    data,
    error,
    shaken,
    six,
    two_of_six,
)
from models import DISTINCT, Attention, Block, Stack, mul_after
from torch import nn

import attnpass
from attnpass import Plan


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
def test_a_plan_from_a_file_knows_layers_by_their_weights(whole, tmp_path):
    """Each layer its own entry, by the digest of its weights; other blocks stay as they are."""
    model, x = six(), data()
    plan = two_of_six(model, x)
    path = plan.save(tmp_path / "plan.json")
    with torch.no_grad():
        want = captured(model, plan, x)(x)
        torch._dynamo.reset()
        options = {"inner": "eager", "plan": str(path), "strict": True}
        if whole:
            for block in model.blocks:
                block.broken = True
            got = torch.compile(model, backend="attnpass", options=options)(x)
        else:
            for block in model.blocks:
                block.compile(backend="attnpass", options=options)
            got = model(x)
    assert error(got, want) <= BOUND and error(got, six()(x)) > 1e-3


@pytest.mark.parametrize("whole", [True, False], ids=["breaks", "regional"])
def test_loaded_plan_of_other_weights_that_was_not_bound_declines(whole, tmp_path, warnings_):
    model, x = six(), data()
    path = two_of_six(model, x).save(tmp_path / "plan.json")
    plan = Plan.load(path)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.25)
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
