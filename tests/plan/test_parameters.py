"""Live parameters: attached to a model, checked against its weights, merged into them."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from deltas import Alone, Broken, changed, close, compiled, data, expected, model
from torch import nn

from attnpass import Capture, Plan, convert
from attnpass.errors import PlanError
from attnpass.plan.delta import Delta
from attnpass.plan.parameters import (
    add_starting_values,
    as_module,
    changed_deltas,
    check_deltas,
    merge,
    move,
    parameters_in,
    share,
)


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


class Form(nn.Module):
    """A form with one parameter in itself and one in a part."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(2))
        self.part = nn.Linear(2, 3, bias=False)


def test_share_puts_the_very_parameters_into_the_module(caplog):
    form, gain, weight = Form(), nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(3, 2))
    values = {"gain": gain, "part.weight": weight, "typo": nn.Parameter(torch.zeros(1))}
    with caplog.at_level(logging.WARNING, "attnpass"):
        share(values, form, "a", trainable=False)
    assert form.gain is gain and form.part.weight is weight
    assert gain.requires_grad
    assert "a: parameters typo are not of this form and are ignored" in caplog.text
    with pytest.raises(PlanError, match="of a that its form has here, got also typo, not 0"):
        share({**values, "typo": nn.Parameter(torch.ones(1))}, form, "a", trainable=False)
    with pytest.raises(PlanError, match=r"expected a.gain of shape \(2,\), got \(3,\)"):
        wrong = {"gain": nn.Parameter(torch.ones(3)), "part.weight": weight}
        share(wrong, Form(), "a", trainable=True)


def test_share_takes_all_parameters_or_starts_them_all():
    form, values = Form(), {}
    start = form.part.weight
    share(values, form, "a", trainable=False)
    assert form.part.weight is start is values["part.weight"] and not start.requires_grad
    with pytest.raises(PlanError, match="expected all parameters of a, got none for part.weight"):
        share({"gain": nn.Parameter(torch.ones(2))}, Form(), "a", trainable=True)


def test_a_move_to_the_same_device_changes_nothing():
    one = nn.Parameter(torch.ones(2))
    one.sum().backward()
    before = one.data_ptr(), one.grad
    move([one], torch.device("cpu"))
    assert (one.data_ptr(), one.grad) == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_a_move_keeps_the_objects_and_their_gradients():
    one = nn.Parameter(torch.ones(2))
    one.sum().backward()
    parameters = [one]
    move(parameters, torch.device("cuda", 0))
    assert parameters[0] is one and one.device.type == one.grad.device.type == "cuda"


def test_all_parameters_below_one_module():
    net = model()
    plan = changed(net, sites="blocks.1.attn")
    module = as_module(plan.values, plan.deltas)
    assert {id(p) for p in module.parameters()} == {id(p) for p in plan.parameters()}
    assert [id(p) for p in parameters_in(plan.values, plan.deltas)] == [
        id(p) for p in plan.parameters()
    ]
    names = {name.split(".")[0] for name, _ in module.named_parameters()}
    assert "blocks/1/attn|blocks/1/attn/qkv/weight" in names


def test_deltas_of_sites_that_stay_are_left_out():
    plan = changed(model())
    plan.sites["blocks.1.attn"].form = "softmax"
    plan.deltas["gone"] = {}
    assert list(changed_deltas(plan.sites, plan.deltas)) == ["blocks.0.attn", "blocks.2.attn"]


def test_starting_values_leave_trained_ones_alone():
    net = model()
    capture = Capture(net).trace(data())
    entries = Plan.create(net, data(), form="sigmoid").sites
    kept = {"gain": nn.Parameter(torch.zeros(1))}
    values = {"blocks.0.attn": kept}
    entries["blocks.2.attn"].form = "softmax"
    add_starting_values(values, entries, capture.sites)
    assert sorted(values) == ["blocks.0.attn", "blocks.1.attn"]
    assert values["blocks.0.attn"] is kept


def test_check_deltas_names_the_weight():
    deltas = {"w": Delta(torch.Size([2, 2]))}
    check_deltas(deltas, {"w": torch.ones(2, 2), "v": torch.ones(1)})
    with pytest.raises(PlanError, match="expected the weight w that the plan changes, got none"):
        check_deltas(deltas, {})
    with pytest.raises(PlanError, match=r"got shape \(3, 2\)"):
        check_deltas(deltas, {"w": torch.ones(3, 2)})


def test_a_refused_merge_changes_nothing():
    weights = {"v": torch.zeros(2, 2), "w": torch.zeros(2, 2)}
    deltas = {"v": Delta(torch.Size([2, 2])), "w": Delta(torch.Size([2, 2]))}
    for delta in deltas.values():
        delta.full.data.fill_(1.0)
    with pytest.raises(PlanError, match="expected the weight w without the plan's delta"):
        merge([deltas], weights, {id(weights["w"])})
    assert not weights["v"].any()
    assert [id(x) for x in merge([deltas], weights, set())] == [id(x) for x in weights.values()]
    assert weights["v"].eq(1).all() and weights["w"].eq(1).all()
