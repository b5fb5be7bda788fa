"""Plans: made, attached, saved, edited by hand, met by another model; and ``attnpass.convert``."""

import json
import logging
import pickle
from collections import namedtuple

import pytest
import torch
from models import DISTINCT, Attention, Block, Stack, mul_after, pad_masked_fill
from torch import nn

import attnpass
from attnpass import Plan
from attnpass.errors import CaptureError, OptionError, PlanError

BOUND = 1e-5


def data(batch=2, tokens=5):
    return torch.randn(batch, tokens, DISTINCT.D, generator=torch.Generator().manual_seed(batch))


def build(depth=2, **kwargs):
    torch.manual_seed(3)
    return Stack(depth, **kwargs).eval()


def error(got, want):
    assert got.shape == want.shape
    got, want = got.detach().double(), want.detach().double()
    return ((got - want).abs().max() / want.abs().max()).item()


def shaken(plan):
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in plan.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    return plan


@pytest.fixture
def warned(caplog):
    caplog.set_level(logging.WARNING, logger="attnpass")

    def read():
        return [r.getMessage() for r in caplog.records if r.name == "attnpass"]

    return read


@pytest.fixture
def saved(tmp_path):
    """A model, its plan, the plan's file."""
    model = build()
    plan = shaken(Plan.create(model, data(), form="sigmoid"))
    return model, plan, plan.save(tmp_path / "plan.json")


def edited(path, **changes):
    """The file with entries changed: ``a__b=value`` sets ``["a"]["b"]``; dots in site names."""
    content = json.loads(path.read_text())
    for key, value in changes.items():
        *parents, last = key.split("__")
        at = content
        for parent in parents:
            at = at[parent.replace("_", ".") if parent.startswith("blocks") else parent]
        last = last.replace("_", ".") if last.startswith("blocks") else last
        if value is None:
            del at[last]
        else:
            at[last] = value
    path.write_text(json.dumps(content))
    return path


# --- made and kept


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


@pytest.mark.parametrize("form", ["sigmoid", "relu", "hydra", "skipat"])
def test_save_and_load(form, tmp_path):
    model, x = build(), data()
    options = {"r": 0.5} if form == "skipat" else {}
    plan = shaken(Plan.create(model, x, form=form, form_options=options))
    plan.tiles, plan.made_by, plan.measured = {"a": {"b": 1}}, {"v": "0"}, {"ms": 1.5}
    path = plan.save(tmp_path / "deep" / "plan.json")
    loaded = Plan.load(path)
    assert loaded.hash == plan.hash
    assert loaded.as_dict() == plan.as_dict()
    values = {f"{s}.{n}": v for s, own in plan.values.items() for n, v in own.items()}
    again = {f"{s}.{n}": v for s, own in loaded.values.items() for n, v in own.items()}
    assert values.keys() == again.keys()
    assert all(torch.equal(values[k], again[k]) for k in values)
    capture = attnpass.Capture(model).trace(x)
    with torch.no_grad():
        assert capture.use(plan) == {n: e.form for n, e in plan.sites.items() if e.form == form}
        want = capture(x)
        capture.use(loaded)
        assert torch.equal(capture(x), want)


@pytest.mark.parametrize("name", ["run.v1", "run.v3.json", "a.safetensors", "plain"])
def test_every_name_has_values_of_its_own(name, tmp_path):
    plans = [Plan.create(build(), data(), form="hydra") for _ in "ab"]
    with torch.no_grad():
        for value in plans[1].parameters():
            value.add_(1.0)
    path, other = tmp_path / name, tmp_path / "run.v2"
    plans[0].save(path), plans[1].save(other)
    assert (Plan.load(path).hash, Plan.load(other).hash) == (plans[0].hash, plans[1].hash)
    assert not [f for f in tmp_path.iterdir() if f.suffix.strip(".").isdigit()]


def test_file_is_json_and_safetensors_and_no_pickle(saved, monkeypatch):
    _, _, path = saved
    assert sorted(p.name for p in path.parent.iterdir()) == ["plan.json", "plan.safetensors"]
    content = json.loads(path.read_text())
    assert content["version"] == 1 and content["parameters"] == "plan.safetensors"
    assert content["sites"]["blocks.1.attn"]["form"] == "sigmoid"

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    Plan.load(path)


def test_parameters_that_are_a_pickle_are_refused_unopened(saved):
    _, _, path = saved

    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    path.with_suffix(".safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(PlanError, match="expected the plan's parameters at"):
        Plan.load(path)


def test_parameters_stay_beside_the_plan(saved, tmp_path_factory):
    """A path in the file leads nowhere else."""
    _, plan, path = saved
    other = tmp_path_factory.mktemp("other") / "x.safetensors"
    path.with_suffix(".safetensors").rename(other)
    edited(path, parameters=str(other))
    with pytest.raises(PlanError, match="expected the plan's parameters at"):
        Plan.load(path)


# --- identity


def test_hash_changes_with_what_matters():
    model, x = build(), data()
    plan = Plan.create(model, x, form="sigmoid")
    start = plan.hash
    assert Plan.create(model, x, form="sigmoid").hash == start
    seen = {start}
    with torch.no_grad():
        next(iter(plan.parameters())).add_(1e-3)
    seen.add(plan.hash)
    seen.add(Plan.create(model, x, form="relu").hash)
    seen.add(Plan.create(model, x, form="relu", form_options={"h": "gelu"}).hash)
    seen.add(Plan.create(model, x, form="relu", form_options={"alpha": 0.5}).hash)
    seen.add(Plan.create(model, x, form="sigmoid", sites="blocks.1.*").hash)
    seen.add(Plan.create(model, x, form="sigmoid", sites="blocks.0.*").hash)
    seen.add(Plan.create(model, x).hash)
    assert len(seen) == 8


def test_structure_and_weights_digests():
    one, two = Plan.create(build(), data()), Plan.create(build(3), data())
    assert one.structure != two.structure
    other = build()
    with torch.no_grad():
        other.blocks[1].attn.k.weight[0, 0] += 1
    changed = Plan.create(other, data())
    assert changed.structure == one.structure and changed.weights != one.weights


def test_other_weights_void_measurements(saved, warned):
    model, plan, path = saved
    edited(path, measured={"ms": 1.0})
    loaded = Plan.load(path).bind(model, data())
    assert loaded.measured == {"ms": 1.0} and warned() == []
    with torch.no_grad():
        model.blocks[0].attn.q.weight.add_(1)
    loaded = Plan.load(path).bind(model, data())
    assert loaded.measured == {}
    assert any("weights of blocks.0.attn changed" in w for w in warned())


def test_parameters_of_another_save_void_measurements(saved, tmp_path, warned):
    """As after a save that was killed between its two files."""
    _, plan, path = saved
    edited(path, measured={"ms": 1.0})
    assert Plan.load(path).measured and warned() == []
    other = shaken(plan.copy()).save(tmp_path / "other.json")
    other.with_suffix(".safetensors").replace(path.with_suffix(".safetensors"))
    assert Plan.load(path).measured == {}
    assert any("plan.safetensors is not what the plan was saved with" in w for w in warned())


# --- edited by hand


def test_hand_edit_is_honoured(saved):
    model, _, path = saved
    plan = Plan.load(edited(path, sites__blocks_0_attn__form="softmax"))
    capture = attnpass.Capture(model).trace(data())
    assert capture.use(plan) == {"blocks.1.attn": "sigmoid"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "expected plan version 1 .*got 2"),
        ({"version": None}, "expected plan version 1 .*got None"),
        ({"version": True}, "expected plan version 1 .*got True"),
        ({"sites": [1]}, "expected a plan with 'version' and 'sites'"),
        ({"sites__blocks_0_attn": "relu"}, "expected a form of .*blocks.0.attn.*'relu'"),
        ({"sites__blocks_0_attn__form": "flash"}, "expected a form of softmax.*'flash'"),
        ({"sites__blocks_0_attn__form": ["relu"]}, "expected a form of softmax"),
        ({"sites__blocks_0_attn__options": {"beta": 1}}, "options of form sigmoid.*got beta"),
        ({"sites__blocks_0_attn__options": 3}, "blocks.0.attn"),
        ({"sites__blocks_0_attn__fits": 3}, "blocks.0.attn"),
        ({"sites__blocks_0_attn__fits": [1]}, "blocks.0.attn"),
        ({"tiles": [1]}, "expected 'tiles' in"),
        ({"measured": 1}, "expected 'measured' in"),
        ({"parameters": "gone.safetensors"}, "expected the plan's parameters at .*gone"),
        ({"parameters": "plan.json"}, "expected the plan's parameters at"),
        ({"parameters": "."}, "expected the plan's parameters at"),
        ({"sites__blocks_0_attn": None}, "expected parameters of the plan's sites.*blocks.0.attn"),
    ],
    ids=lambda x: "" if isinstance(x, str) else "-".join(f"{k}={v}" for k, v in x.items()),
)
def test_broken_file(changes, message, saved):
    _, _, path = saved
    with pytest.raises(PlanError, match=message) as caught:
        Plan.load(edited(path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "\x00\xff"])
def test_broken_json(text, saved):
    _, _, path = saved
    path.write_text(text)
    with pytest.raises(PlanError, match="expected a plan"):
        Plan.load(path)


def test_no_such_file(tmp_path):
    with pytest.raises(PlanError, match="expected a plan file at .*none.json"):
        Plan.load(tmp_path / "none.json")
    with pytest.raises(PlanError, match="expected a plan file at"):
        Plan.load(tmp_path)


def test_missing_tensors(saved):
    _, _, path = saved
    path.with_suffix(".safetensors").unlink()
    with pytest.raises(PlanError, match="expected the plan's parameters at .*plan.safetensors"):
        Plan.load(path)


def test_parameters_of_a_wrong_dtype(saved):
    from safetensors.torch import load_file, save_file

    _, _, path = saved
    tensors = path.with_suffix(".safetensors")
    save_file({k: v.to(torch.int32) for k, v in load_file(tensors).items()}, tensors)
    with pytest.raises(PlanError, match="expected"):
        Plan.load(path)


# --- met by a model that it does not fit: softmax and one warning, or PlanError


def changed_heads(model, plan, path):
    class Fewer(Stack):
        pass

    import models

    sizes = models.Sizes(H=2, d=12)
    torch.manual_seed(0)
    return Stack(2, sizes=sizes).eval(), Plan.load(path)


def another_name(model, plan, path):
    content = json.loads(path.read_text())
    content["sites"]["blocks.7.attn"] = content["sites"]["blocks.1.attn"]
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
    return model, Plan.load(path)


def wrong_value(model, plan, path):
    content = json.loads(path.read_text())
    content["sites"]["blocks.0.attn"].update(form="relu", options={"h": "tanh"})
    path.write_text(json.dumps(content))
    return model, Plan.load(path)


def wrong_type(model, plan, path):
    content = json.loads(path.read_text())
    content["sites"]["blocks.0.attn"].update(form="relu", options={"alpha": "one"})
    path.write_text(json.dumps(content))
    return model, Plan.load(path)


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
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=message) as caught:
        torch.compile(model, backend="attnpass", options=options)(x)
    assert isinstance(caught.value.inner_exception, PlanError)


def test_extra_parameters_are_named(saved, warned):
    from safetensors.torch import load_file, save_file

    model, _, path = saved
    tensors = load_file(path.with_suffix(".safetensors"))
    tensors["blocks.0.attn|typo"] = torch.ones(3)
    save_file(tensors, path.with_suffix(".safetensors"))
    attnpass.Capture(model).trace(data()).use(Plan.load(path))
    assert [w for w in warned() if "typo" in w and "blocks.0.attn" in w]


# --- convert


def converted(model, plan, *args, **kwargs):
    with torch.no_grad():
        capture = attnpass.Capture(model).trace(*args, **kwargs)
        capture.use(plan)
        return attnpass.convert(model, plan, *args, **kwargs), capture


@pytest.mark.parametrize("form", ["sigmoid", "relu", "hydra", "skipat"])
def test_convert_equals_capture_at_any_batch(form):
    model = build()
    plan = shaken(Plan.create(model, data(), form=form))
    module, capture = converted(model, plan, data())
    with torch.no_grad():
        for batch in (2, 3, 7, 1):
            assert error(module(data(batch)), capture(data(batch))) <= BOUND


def test_convert_shares_parameters_and_is_differentiable():
    model, x = build().train(), data()
    plan = shaken(Plan.create(model, x, form="relu"))
    module = attnpass.convert(model, plan, x)
    capture = attnpass.Capture(model).trace(x)
    capture.use(plan)
    own = {id(p) for p in module.parameters()}
    weights = [p for p in [*model.parameters(), *plan.parameters()] if id(p) in own]
    assert {id(p) for p in plan.parameters()} <= own
    want = torch.autograd.grad(capture(x).square().sum(), weights, allow_unused=True)
    got = torch.autograd.grad(module(x).square().sum(), weights, allow_unused=True)
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        before = module(x)
        model.head.weight.add_(1)
        assert error(module(x), before) > 1e-3


def test_convert_in_evaluation_is_differentiable():
    model, x = build(), data()
    plan = Plan.create(model, x, form="relu")
    module = attnpass.convert(model, plan, x)
    module(x).sum().backward()
    assert model.blocks[0].attn.q.weight.grad.any()


def test_convert_keywords_and_structures():
    Out = namedtuple("Out", "logits mask")

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.stack = build(core=pad_masked_fill)

        def forward(self, batch, *, mask, double=False):
            y = self.stack(batch["x"], mask)
            return {"y": (y * 2 if double else y), "out": Out(y + 1, mask), "n": 3, "none": None}

    model, x = Model().eval(), data(3)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 2:] = False
    plan = Plan.create(model, {"x": x}, mask=mask, double=True, form="relu")
    module, capture = converted(model, plan, {"x": x}, mask=mask, double=True)
    with torch.no_grad():
        for batch in (3, 5):
            x, mask = data(batch), torch.ones(batch, 5, dtype=torch.bool)
            mask[0, 3:] = False
            want = capture({"x": x}, mask=mask, double=True)
            got = module({"x": x}, mask=mask, double=True)
            assert error(got["y"], want["y"]) <= BOUND
            assert isinstance(got["out"], Out) and got["out"].mask is mask
            assert error(got["out"].logits, want["out"].logits) <= BOUND
            assert got["n"] == 3 and got["none"] is None
    with pytest.raises(CaptureError, match="structure"), torch.no_grad():
        module({"x": x}, mask=mask)
    with pytest.raises(CaptureError), torch.no_grad():
        module({"x": x}, mask=mask, double=False)


def test_convert_does_not_confuse_arguments_that_were_one_tensor():
    """Converted on ``(x, x)``, called with two tensors: the right answer or a refusal."""

    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = Attention(mul_after)

        def forward(self, x, y):
            return self.attn(x, None, y)

    model, x, y = Cross().eval(), data(2), data(2).flip(0)
    plan = Plan.create(model, x, x, form="relu")
    module = attnpass.convert(model, plan, x, x)
    capture = attnpass.Capture(model)
    with torch.no_grad():
        capture.trace(x, y)
        capture.use(plan)
        try:
            got = module(x, y)
        except CaptureError:
            return
        assert error(got, capture(x, y)) <= BOUND


def test_convert_other_length_is_right_or_refused():
    model = build()
    plan = Plan.create(model, data(), form="relu")
    module, capture = converted(model, plan, data())
    with torch.no_grad():
        try:
            got = module(data(2, 8))
        except (CaptureError, RuntimeError):
            return
        assert error(got, capture(data(2, 8))) <= BOUND


def test_convert_a_returned_batch_size_is_right_or_refused():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block()

        def forward(self, x):
            return self.block(x), x.shape[0]

    model = Model().eval()
    plan = Plan.create(model, data(2), form="relu")
    try:
        module = attnpass.convert(model, plan, data(2))
        with torch.no_grad():
            _, batch = module(data(5))
    except CaptureError:
        return
    assert batch == 5


@pytest.mark.parametrize("headless", [True, False])
def test_convert_refuses_graph_breaks(headless):
    """Also where all layers share one graph, of which the last call makes the result."""
    model, x = build(), data()
    if headless:
        model.head = nn.Identity()
    plan = Plan.create(model, x, form="relu")
    torch._dynamo.reset()
    for block in model.blocks:
        block.broken = True
    with pytest.raises(CaptureError, match="one graph, got"):
        attnpass.convert(model, plan, x)


def test_convert_is_a_plain_module(tmp_path):
    model, x = build(), data()
    plan = Plan.create(model, x, form="sigmoid")
    module = attnpass.convert(model, plan, x)
    with torch.no_grad():
        want = module(x)
        state = {k: v.clone() for k, v in module.state_dict().items()}
        for parameter in module.parameters():
            parameter.zero_()
        assert not torch.equal(module(x), want)
        module.load_state_dict(state)
        assert torch.equal(module(x), want)
        exported = torch.export.export(module, (x,)).module()
        assert error(exported(x), want) <= BOUND
