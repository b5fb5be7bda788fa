"""Deltas: W + delta runs everywhere as if it were the weight, and the model is never changed."""

from __future__ import annotations

import copy
import io
import logging
import pickle

import pytest
import torch
from rich.console import Console
from torch import nn

from attnpass import Capture, Plan, convert
from attnpass.errors import PlanError
from attnpass.plan.delta import Delta
from attnpass.tuner.digits import DigitsViT
from attnpass.tuner.show import plan_table

FORMS = ["sigmoid", "hydra"]
RANKS = [None, 2]


def model() -> nn.Module:
    torch.manual_seed(0)
    return DigitsViT(dim=16, depth=3, heads=2).eval()


class Alone(nn.Module):
    """Attention in the model itself, below no module."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in "qkvo")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (p(x).unflatten(2, (2, 8)).transpose(1, 2) for p in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.o(y.transpose(1, 2).flatten(2))


def data(n: int = 2) -> torch.Tensor:
    return torch.rand(n, 1, 32, 32, generator=torch.Generator().manual_seed(1))


def changed(net: nn.Module, form: str = "sigmoid", rank: int | None = None, **given) -> Plan:
    """A plan that changes every projection of every site by random numbers."""
    capture = Capture(net).trace(data())
    plan = Plan.create(net, data(), form=form, **given)
    generator = torch.Generator().manual_seed(2)
    for site, weights in capture.projections().items():
        if plan.sites[site].form == "softmax":
            continue
        for path, weight in weights.items():
            delta = Delta(weight.shape, rank)
            for parameter in delta.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data.copy_(noise * 0.1)
            plan.deltas.setdefault(site, {})[path] = delta
    return plan


def expected(net: nn.Module, plan: Plan, x: torch.Tensor) -> torch.Tensor:
    """What a copy of the model gives whose weights are the sums, in float64."""
    other = copy.deepcopy(net).double()
    weights = dict(other.named_parameters(remove_duplicate=False))
    bare = Plan(plan.sites)
    bare.values = {
        s: {k: nn.Parameter(v.detach().double()) for k, v in own.items()}
        for s, own in plan.values.items()
    }
    with torch.no_grad():
        for deltas in plan.deltas.values():
            for path, delta in deltas.items():
                parts = dict(delta.named_parameters())
                change = parts["full"] if "full" in parts else parts["left"] @ parts["right"]
                weights[path].add_(change.double().view(weights[path].shape))
        capture = Capture(other)
        capture.trace(x.double())
        capture.use(bare, strict=True)
        return capture(x.double())


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def compiled(net, plan, inner="aot_eager"):
    torch._dynamo.reset()
    return torch.compile(net, backend="attnpass", options={"plan": plan, "inner": inner})


def test_every_projection_is_known():
    found = Capture(model()).trace(data()).projections()
    assert set(found["blocks.1.attn"]) == {
        f"blocks.1.attn.{name}.{kind}" for name in ("qkv", "proj") for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("form", FORMS)
def test_capture_compiled_and_converted_give_the_sums(form, rank):
    net, x = model(), data()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    plan = changed(net, form, rank)
    want = expected(net, plan, x)
    capture = Capture(net).trace(x)
    with torch.no_grad():
        plain = net(x)
        capture.use(plan, strict=True)
        close(capture(x), want)
        close(compiled(net, plan)(x), want)
        close(convert(net, plan, x)(x), want)
        bare = copy.copy(plan)
        bare.deltas = {}
        capture.use(bare)
        assert not torch.allclose(capture(x).double(), want, atol=1e-3)
        capture.use(None)
        torch.testing.assert_close(capture(x), plain)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("way", ["capture", "compiled"])
@pytest.mark.parametrize("rank", RANKS)
def test_a_changed_weight_or_delta_is_seen(way, rank):
    net, x = model(), data()
    plan = changed(net, rank=rank)
    capture = Capture(net).trace(x)
    capture.use(plan)
    run = capture if way == "capture" else compiled(net, plan)
    with torch.no_grad():
        first = run(x)
        close(run(x), first.double())
        for change in (net.blocks[0].attn.qkv.weight, *list(plan.parameters())[-2:]):
            change.mul_(1.5)
            again = run(x)
            assert not torch.allclose(again, first, atol=1e-4)
            close(again, expected(net, plan, x))
            first = again


@pytest.mark.parametrize("way", ["capture", "aot_eager", "inductor"])
def test_weights_and_deltas_are_both_trained(way):
    net, x = model(), data()
    plan = changed(net, "hydra")
    if way == "capture":
        run = Capture(net).trace(x)
        run.use(plan)
    else:
        run = compiled(net, plan, way)
    run(x).square().sum().backward()
    for path, delta in plan.deltas["blocks.1.attn"].items():
        weight = net.get_parameter(path)
        assert weight.grad.abs().max() > 0
        torch.testing.assert_close(weight.grad, delta.full.grad)


def test_low_rank_gradients_are_those_of_the_sum():
    weight = torch.randn(6, 4, 3, dtype=torch.float64, requires_grad=True)
    delta = Delta(weight.shape, 2).double()
    delta.left.data.normal_()
    assert torch.autograd.gradcheck(
        lambda w, a, b: torch.func.functional_call(delta, {"left": a, "right": b}, (w,)),
        (weight, delta.left, delta.right),
    )


def test_a_delta_starts_at_nothing_and_is_full_where_that_is_less():
    weight = torch.randn(8, 16)
    assert torch.equal(Delta(weight.shape, 2, seed=3)(weight), weight)
    assert Delta(weight.shape, 5).right.shape == (5, 16)
    assert Delta(weight.shape, 6).full is not None  # 6 (8 + 16) numbers would be more
    assert Delta(torch.Size([16]), 1).full is not None


def test_half_precision_weights_are_summed_in_float32():
    weight = torch.ones(4, 4, dtype=torch.bfloat16)
    delta = Delta(weight.shape)
    delta.full.data.fill_(1 / 256 + 1 / 1024)
    assert delta(weight).dtype == torch.bfloat16
    assert torch.equal(delta(weight), (weight.float() + delta.full).bfloat16())


class Broken(nn.Module):
    """Every block is a graph of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = model()

    def forward(self, x):
        net = self.net
        x = net.patch_embed(net.stem(x)).flatten(2).transpose(1, 2)
        for block in net.blocks:
            torch._dynamo.graph_break()
            x = block(x)
        return x.mean(1)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("grad", [False, True])
def test_layers_that_share_a_graph_have_their_own_deltas(grad):
    net, x = Broken().eval(), data()
    plan = changed(net, "sigmoid", sites=["*blocks.0*", "*blocks.2*"])
    assert sorted(plan.deltas) == ["net.blocks.0.attn", "net.blocks.2.attn"]
    want = expected(net, plan, x)
    with torch.set_grad_enabled(grad):
        capture = Capture(net)
        capture(x)
        capture.use(plan, strict=True)
        close(capture(x), want)
        close(compiled(net, plan, "eager")(x), want)


def test_saved_loaded_and_hashed(tmp_path):
    net, x = model(), data()
    plan = changed(net, rank=2)
    loaded = Plan.load(plan.save(tmp_path / "plan.json"))
    assert loaded.hash == plan.hash
    with torch.no_grad():
        close(compiled(net, loaded)(x), expected(net, plan, x))
        loaded.deltas["blocks.0.attn"]["blocks.0.attn.qkv.weight"].left.add_(1e-3)
    assert loaded.hash != plan.hash
    bare = Plan.load(tmp_path / "plan.json")
    bare.deltas = {}
    assert bare.hash != plan.hash


def test_attached_deltas_are_parameters_of_the_model():
    net = model()
    plan = changed(net)
    before = len(list(net.parameters()))
    plan.attach(net)
    assert len(list(net.parameters())) == before + len(list(plan.parameters()))


def test_merge_writes_the_sums_and_returns_a_plan_without_deltas():
    net, x = model(), data()
    plan = changed(net, "hydra")
    want = expected(net, plan, x)
    merged = plan.merge_into(net)
    assert not merged.deltas and plan.deltas
    with torch.no_grad():
        close(compiled(net, merged)(x), want)


def test_merging_twice_is_refused(caplog):
    net, x = model(), data()
    plan = changed(net)
    plan.merge_into(net)
    after = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(PlanError, match=r"blocks.0.attn.*merged already; go on with the plan"):
        plan.merge_into(net)
    assert all(torch.equal(v, after[k]) for k, v in net.state_dict().items())
    plan.merge_into(model())  # another one may have them too
    with caplog.at_level(logging.WARNING, "attnpass"):
        Capture(net).trace(x).use(plan)
    assert "trained on other weights than these; merged already?" in caplog.text


def test_weights_that_were_trained_with_the_deltas_are_no_others(caplog):
    net, x = model(), data()
    plan = changed(net)
    with torch.no_grad():
        net.blocks[0].attn.qkv.weight.add_(0.1)  # as the user's optimiser does
    with caplog.at_level(logging.WARNING, "attnpass"), torch.no_grad():
        compiled(net, plan, "eager")(x)
        Capture(net).trace(x).use(plan)
    assert "trained on other weights" not in caplog.text


def test_merging_keeps_what_tells_layers_apart():
    net, x = Broken().eval(), data()
    plan = changed(net)
    want = expected(net, plan, x)
    merged = plan.merge_into(net)
    with torch.no_grad():
        close(compiled(net, merged, "eager")(x), want)


def test_deltas_of_a_site_that_stays_softmax_are_neither_run_nor_merged_nor_kept(tmp_path):
    net, x = model(), data()
    plan = changed(net)
    plan.sites["blocks.1.attn"].form = "softmax"
    loaded = Plan.load(plan.save(tmp_path / "plan.json"))
    assert sorted(loaded.deltas) == ["blocks.0.attn", "blocks.2.attn"]
    with torch.no_grad():
        run = compiled(net, plan)(x)
        other = copy.deepcopy(net)
        merged = plan.merge_into(other)
        close(compiled(other, merged)(x), run.double())


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_softmax_that_learns_runs_and_merges_its_deltas(inner, tmp_path):
    net, x = model(), data()
    plan = changed(net)
    site = plan.sites["blocks.1.attn"]
    site.form, site.options = "softmax", {"learns": True}
    plan.values.pop("blocks.1.attn")
    loaded = Plan.load(plan.save(tmp_path / "plan.json"))
    assert loaded.hash == plan.hash and sorted(loaded.deltas) == sorted(plan.deltas)
    # the same by hand: the weights changed, the site left alone
    other, rest = copy.deepcopy(net), plan.copy()
    weights = dict(other.named_parameters())
    rest.sites["blocks.1.attn"].options = {}
    assert rest.hash != plan.hash
    with torch.no_grad():
        for path, delta in rest.deltas.pop("blocks.1.attn").items():
            weights[path].copy_(delta.add(weights[path]))
        want = compiled(other, rest, inner)(x).double()
        close(compiled(net, loaded, inner)(x), want)
        merged = loaded.merge_into(net)
        assert all(
            torch.equal(p, weights[n]) for n, p in net.named_parameters() if "blocks.1" in n
        )
        close(compiled(net, merged, inner)(x), want)


class Tied(nn.Module):
    """The head's weight is an output projection's, in another graph."""

    def __init__(self) -> None:
        super().__init__()
        self.net = model()
        self.head = nn.Linear(16, 16)
        self.head.weight = self.net.blocks[1].attn.proj.weight

    def forward(self, x):
        x = self.net.patch_embed(self.net.stem(x)).flatten(2).transpose(1, 2)
        for block in self.net.blocks:
            x = block(x)
        torch._dynamo.graph_break()
        return self.head(x)


def test_a_weight_that_another_graph_uses_has_no_delta():
    found = Capture(Tied().eval()).trace(data()).projections()
    assert "net.blocks.0.attn.proj.weight" in found["net.blocks.0.attn"]
    assert "net.blocks.1.attn.proj.weight" not in found["net.blocks.1.attn"]


class Aliased(nn.Module):
    """A module that is registered under two paths."""

    def __init__(self) -> None:
        super().__init__()
        net = model()
        self.first = net.blocks[0].attn
        self.net = net

    def forward(self, x):
        return self.net(x)


def test_a_module_of_two_names_is_the_same_captured_and_compiled():
    net, x = Aliased().eval(), data()
    plan = changed(net)
    want = expected(net, plan, x)
    capture = Capture(net).trace(x)
    with torch.no_grad():
        capture.use(plan, strict=True)
        close(capture(x), want)
        close(compiled(net, plan)(x), want)


def test_another_weight_at_the_same_address_is_another_weight():
    delta = Delta(torch.Size([64, 64]))
    with torch.no_grad():
        for i in range(20):
            weight = nn.Parameter(torch.full((64, 64), float(i)))
            assert torch.equal(delta(weight), weight.detach())
            del weight


def test_made_under_inference_mode(tmp_path):
    net, x = model(), data()
    plan = changed(net)
    path = plan.save(tmp_path / "plan.json")
    with torch.inference_mode():
        loaded = Plan.load(path)
        close(compiled(net, loaded, "eager")(x), expected(net, plan, x))
    with torch.no_grad():
        close(compiled(net, loaded, "eager")(x), expected(net, plan, x))


def test_plans_with_buffers_can_be_copied_and_pickled():
    net = model()
    plan = changed(net)
    delta = plan.deltas["blocks.0.attn"]["blocks.0.attn.qkv.weight"]
    with torch.no_grad():
        want = delta(net.blocks[0].attn.qkv.weight)
        for other in (pickle.loads(pickle.dumps(delta)), copy.deepcopy(delta)):
            assert torch.equal(other(net.blocks[0].attn.qkv.weight), want)
    assert plan.copy().hash == plan.hash


@pytest.mark.parametrize("way", ["capture", "compiled"])
def test_deltas_on_weights_they_were_not_trained_on_are_told_once(way, tmp_path, caplog):
    net, x = model(), data()
    path = changed(net, sites="blocks.1.attn").save(tmp_path / "plan.json")

    def use(plan: Plan) -> None:
        with caplog.at_level(logging.WARNING, "attnpass"), torch.no_grad():
            if way == "capture":
                capture = Capture(net).trace(x)
                capture.use(plan)
                capture.use(plan)
            else:
                compiled(net, plan, "eager")(x)

    use(Plan.load(path))
    assert "trained on other weights" not in caplog.text
    merged = Plan.load(path).merge_into(net)
    use(merged)
    assert "trained on other weights" not in caplog.text
    use(Plan.load(path))
    assert caplog.text.count("blocks.1.attn: the plan's deltas were trained on other") == 1


def misfit(plan: Plan, what: str) -> Plan:
    deltas = plan.deltas["blocks.1.attn"]
    if what == "shape":
        deltas["blocks.1.attn.qkv.weight"] = Delta(torch.Size([3, 3]))
    else:
        deltas["blocks.9.attn.qkv.weight"] = deltas.pop("blocks.1.attn.qkv.weight")
    return plan


@pytest.mark.parametrize("what", ["shape", "path"])
def test_a_delta_of_another_weight_is_refused(what, caplog):
    net, x = model(), data()
    plan = misfit(changed(net), what)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(PlanError, match="expected the weight blocks"):
        plan.merge_into(net)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    capture = Capture(net).trace(x)
    with caplog.at_level(logging.WARNING, "attnpass"):
        assert sorted(capture.use(plan)) == ["blocks.0.attn", "blocks.2.attn"]
    assert "expected the weight blocks" in caplog.text
    with pytest.raises(PlanError, match="expected the weight blocks"):
        capture.use(plan, strict=True)
    del plan.deltas["blocks.1.attn"]
    plan.sites["blocks.1.attn"].form = "softmax"
    plan.values.pop("blocks.1.attn")
    with torch.no_grad():
        close(compiled(net, misfit(changed(net), what))(x), expected(net, plan, x))


def test_a_site_that_stays_softmax_keeps_its_weights(caplog):
    net, x = model(), data()
    plan = changed(net)
    plan.sites["blocks.1.attn"].fits["heads"] = 7
    capture = Capture(net).trace(x)
    with caplog.at_level(logging.WARNING, "attnpass"):
        capture.use(plan)
    ((_, layer),) = capture.layers
    paths = {path for path, at in layer.positions.items() if at in layer.deltas}
    assert {path.split(".attn.")[0] for path in paths} == {"blocks.0", "blocks.2"}


@pytest.mark.parametrize(
    "parts",
    [
        {"left": (2, 1)},
        {"left": (4, 2), "right": (3, 4)},
        {"other": (2, 2)},
        {"full": (48, 16), "other": (2, 2)},
    ],
)
def test_broken_deltas_in_a_file_are_one_line(parts, tmp_path):
    from safetensors.torch import load_file, save_file

    net = model()
    path = changed(net).save(tmp_path / "plan.json")
    tensors = load_file(tmp_path / "plan.safetensors")
    key = "blocks.1.attn|blocks.1.attn.qkv.weight|full"
    del tensors[key]
    tensors |= {key.replace("full", k): torch.zeros(v) for k, v in parts.items()}
    save_file(tensors, tmp_path / "plan.safetensors")
    with pytest.raises(PlanError, match="expected (full|left)"):
        Plan.load(path)


def test_show_says_what_a_plan_changes():
    plan = changed(model(), sites="blocks.1.attn")
    out = io.StringIO()
    Console(file=out, width=120).print(plan_table(plan))
    (row,) = [line for line in out.getvalue().splitlines() if "blocks.1.attn" in line]
    assert "4 (1,088 numbers)" in row  # 48 x 16 + 48 + 16 x 16 + 16


def test_attention_of_the_model_itself_has_deltas_too():
    torch.manual_seed(0)
    net, x = Alone().eval(), torch.randn(2, 5, 16)
    plan = Plan.create(net, x, form="sigmoid")
    assert list(plan.sites) == ["root"]
    weights = Capture(net).trace(x).projections()["root"]
    plan.deltas["root"] = {path: Delta(w.shape, None, seed=0) for path, w in weights.items()}
    with torch.no_grad():
        for delta in plan.deltas["root"].values():
            for p in delta.parameters():
                p.add_(torch.randn(p.shape))
        merged = copy.deepcopy(net)
        rest = plan.merge_into(merged)
        want = convert(merged, rest, x)(x)
        compiled = torch.compile(net, backend="attnpass", options={"plan": plan, "inner": "eager"})
        torch.testing.assert_close(compiled(x), want)
        assert not torch.allclose(want, net(x), atol=0.1)
