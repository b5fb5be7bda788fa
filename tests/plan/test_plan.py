"""Plans: made, attached, and met by a model that they do not fit."""

import json

import pytest
import torch
from models import Stack
from plans import BOUND, build, data, error, sealed
from torch import nn

import attnpass
from attnpass import Plan, Task
from attnpass.errors import CaptureError, OptionError, PlanError
from attnpass.plan import Entry
from attnpass.tuner.check import verify_plan


@pytest.mark.parametrize("form", ["sigmoid", "relu", "hydra", "skipat"])
def test_create(form):
    model, options = build(), {"r": 0.5} if form == "skipat" else {}
    plan = Plan.create(model, data(), form=form, form_options=options)
    assert list(plan.sites) == ["blocks.0.attn", "blocks.1.attn"]
    forms = ["softmax" if form == "skipat" else form, form]
    assert [e.form for e in plan.sites.values()] == forms
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in plan.parameters())
    assert len(list(plan.parameters())) > 0
    assert not {id(p) for p in plan.parameters()} & {id(p) for p in model.parameters()}


def test_create_refuses():
    model, x = build(), data()
    with pytest.raises(OptionError, match="expected a form of softmax"):
        Plan.create(model, x, form="flash")
    with pytest.raises(
        OptionError, match="expected a glob that matches a site, got 'x'.*blocks.0"
    ):
        Plan.create(model, x, form="relu", sites="x")
    with pytest.raises(CaptureError, match="found none"):
        Plan.create(nn.Linear(4, 4), torch.randn(2, 4))
    with pytest.raises(PlanError, match="skipat"):
        Plan.create(model, x, form="skipat", sites="blocks.0.attn", strict=True)


def test_create_names_an_illegal_site_loudly(warned):
    plan = Plan.create(build(), data(), form="skipat", sites="blocks.0.attn")
    assert plan.sites["blocks.0.attn"].form == "softmax"
    assert any("blocks.0.attn" in w and "skipat" in w for w in warned())


def test_attach_registers_parameters_once():
    model = build()
    before = set(model.state_dict())
    plan = Plan.create(model, data(), form="skipat", form_options={"r": 1}).attach(model)
    added = set(model.state_dict()) - before
    assert len(added) == len(list(plan.parameters()))
    own = {id(p) for p in model.parameters()}
    assert all(id(p) in own for p in plan.parameters())
    run = torch.compile(model, backend="attnpass", options={"inner": "eager", "plan": plan})
    run(data()).sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.attnpass_plan.parameters())


def changed_heads(model, plan, path):
    class Fewer(Stack):
        pass

    import models

    sizes = models.Sizes(H=2, d=12)
    torch.manual_seed(0)
    return Stack(2, sizes=sizes).eval(), Plan.load(path)


def another_name(model, plan, path):
    content = json.loads(path.read_text())
    content["sites"]["blocks.7.attn"] = {**content["sites"]["blocks.1.attn"], "weights": ""}
    path.write_text(json.dumps(content))
    return model, Plan.load(path)


def illegal(model, plan, path):
    content = json.loads(path.read_text())
    content["sites"]["blocks.0.attn"].update(form="skipat", options={})
    path.write_text(json.dumps(content))
    return model, Plan.load(path)


def wrong_shape(model, plan, path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(path.with_suffix(".safetensors"))
    tensors["blocks.0.attn|gain"] = torch.ones(3)
    save_file(tensors, path.with_suffix(".safetensors"))
    return model, Plan.load(sealed(path))


def wrong_value(model, plan, path):
    """As a caller may change a plan; a file with this value is not loaded."""
    plan.sites["blocks.0.attn"] = Entry("relu", {"h": "tanh"})
    return model, plan


def wrong_type(model, plan, path):
    plan.sites["blocks.0.attn"] = Entry("relu", {"alpha": "one"})
    return model, plan


MISFITS = [
    (changed_heads, "blocks.0.attn with heads 4, got 2"),
    (another_name, "blocks.7.attn"),
    (illegal, "expected a legal form at blocks.0.attn, got skipat"),
    (wrong_shape, "blocks.0.attn.gain of shape"),
    (wrong_value, "expected h in"),
    (wrong_type, "alpha"),
]


@pytest.mark.parametrize("how", ["capture", "backend"])
@pytest.mark.parametrize(("misfit", "message"), MISFITS, ids=lambda x: getattr(x, "__name__", ""))
def test_misfit_stays_softmax_loudly(misfit, message, how, saved, warned):
    model, plan = misfit(*saved)
    x = data()
    with torch.no_grad():
        want = model(x)
        if how == "capture":
            capture = attnpass.Capture(model).trace(x)
            ran = capture.use(plan)
            got = capture(x)
        else:
            got = torch.compile(
                model, backend="attnpass", options={"inner": "eager", "plan": plan}
            )(x)
            ran = attnpass.compiled_report().rewritten
    lines = [w for w in warned() if message in w]
    assert len(lines) == 1, warned()
    assert "\n" not in lines[0]
    assert "blocks.0.attn" not in ran or misfit is another_name
    if misfit is changed_heads:
        assert error(got, want) <= BOUND and ran == {}
    else:
        assert ran["blocks.1.attn"] == "sigmoid"


@pytest.mark.parametrize("how", ["capture", "backend"])
@pytest.mark.parametrize(("misfit", "message"), MISFITS, ids=lambda x: getattr(x, "__name__", ""))
def test_misfit_raises_when_strict(misfit, message, how, saved):
    model, plan = misfit(*saved)
    x = data()
    if how == "capture":
        capture = attnpass.Capture(model).trace(x)
        with pytest.raises(PlanError, match=message):
            capture.use(plan, strict=True)
        return
    options = {"inner": "eager", "plan": plan, "strict": True}
    if misfit is another_name:
        # the site may be in another graph: a warning, as above
        torch.compile(model, backend="attnpass", options=options)(x)
        return
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=message) as caught:
        torch.compile(model, backend="attnpass", options=options)(x)
    assert isinstance(caught.value.inner_exception, PlanError)


def test_extra_parameters_are_named(saved, warned):
    from safetensors.torch import load_file, save_file

    model, _, path = saved
    tensors = load_file(path.with_suffix(".safetensors"))
    tensors["blocks.0.attn|typo"] = torch.ones(3)
    save_file(tensors, path.with_suffix(".safetensors"))
    attnpass.Capture(model).trace(data()).use(Plan.load(sealed(path)))
    assert [w for w in warned() if "typo" in w and "blocks.0.attn" in w]


def test_absent_is_one_error_for_all_changed_sites_that_are_not_there():
    plan = Plan.create(build(3), data(), form="relu", sites=["blocks.0.*", "blocks.2.*"])
    assert plan.absent({"blocks.0.attn", "blocks.2.attn"}) == []
    assert plan.absent(["blocks.0.attn", "blocks.2.attn", "other"]) == []
    (one,), (two,) = plan.absent({"blocks.0.attn"}), plan.absent({"blocks.1.attn"})
    assert isinstance(one, PlanError) and isinstance(two, PlanError)
    assert str(one).startswith("expected the plan's site blocks.2.attn in the model, found none;")
    sites = "blocks.0.attn, blocks.2.attn"
    assert str(two).startswith(f"expected the plan's sites {sites} in the model, found none;")
    assert "in the graph" in str(plan.absent((), "graph")[0])


def test_absent_is_one_text_captured_compiled_and_verified(warned):
    plan = Plan.create(build(3), data(), form="relu", sites="blocks.2.*")
    plan = Plan(plan.sites)
    text = "expected the plan's site blocks.2.attn in the {}, found none; was the plan made for"
    with torch.no_grad():
        attnpass.Capture(build()).trace(data()).use(plan)
        task = Task("two", build(), (data(),), [(data(),)], [((data(),), data())], _zeros)
        (problem,) = verify_plan(plan, task).problems
        assert problem.startswith(text.format("model"))
        other = build()
        for p in other.parameters():
            p.mul_(1.5)
        options = {"inner": "eager", "plan": plan}
        torch.compile(other, backend="attnpass", options=options)(data())
    told = [w for w in warned() if "found none" in w]
    assert [w.startswith(text.format("model")) for w in told] == [True, True, False]
    assert told[-1].startswith(text.format("graph"))


def _zeros(output, target):
    return torch.zeros(len(output))


def test_bind_gives_a_loaded_plan_the_layers_identities(saved):
    model, plan, path = saved
    loaded = Plan.load(path)
    assert not loaded.bindings and loaded.parameters_of("blocks.0.attn") == []
    assert loaded.bind(model, data()) is loaded
    for site in plan.sites:
        ours = [id(p) for p in plan.parameters_of(site)]
        assert ours and [id(p) for p in loaded.parameters_of(site)] == ours


def test_a_copy_has_parameters_of_its_own_and_the_same_identity(saved):
    _, plan, _ = saved
    other = plan.copy()
    assert other.hash == plan.hash
    assert other.bindings.parameter_ids() == plan.bindings.parameter_ids() != set()
    assert not {id(p) for p in other.parameters()} & {id(p) for p in plan.parameters()}


def test_frozen_and_constant(saved):
    model, plan, _ = saved
    assert plan.frozen() is plan and not any(p.requires_grad for p in plan.parameters())
    bare = Plan({name: Entry("sigmoid") for name in plan.sites}).constant()
    capture = attnpass.Capture(model).trace(data())
    assert set(capture.use(bare)) == set(plan.sites)
    assert not any(p.requires_grad for p in bare.parameters())
