"""Plans on disk: saved, loaded, edited by hand, broken."""

import json
import pickle
from dataclasses import FrozenInstanceError
from pathlib import Path

import house
import pytest
import torch
from deltas import changed, close, compiled, expected, model
from deltas import data as images
from plans import build, data, edited, error, sealed, shaken
from tiny_tasks import tiny

import attnpass
from attnpass import Plan
from attnpass.errors import PlanError
from attnpass.kernels.tile import Tile
from attnpass.plan.document import Document


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


def test_parameters_of_another_save_are_refused(saved, tmp_path):
    _, plan, path = saved
    other = shaken(plan.copy()).save(tmp_path / "other.json")
    other.with_suffix(".safetensors").replace(path.with_suffix(".safetensors"))
    with pytest.raises(PlanError, match="expected the parameters that .* was saved with"):
        Plan.load(path)


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("at", range(4))
def test_a_save_over_another_that_is_killed_leaves_one_of_them(saved, at, monkeypatch):
    """Before and after each rename: the old plan or the new one, whole."""
    _, plan, path = saved
    new, replace = shaken(plan.copy()), Path.replace
    renamed = iter(range(10))

    def killed(half, target):
        number = next(renamed)
        if number == at // 2 and at % 2 == 0:
            raise Killed
        replace(half, target)
        if number == at // 2:
            raise Killed

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(Killed):
        new.save(path)
    monkeypatch.undo()
    assert Plan.load(path).hash == (new.hash if at == 3 else plan.hash)
    assert Plan.load(new.save(path)).hash == new.hash


def test_saves_over_one_another_leave_two_files(saved):
    _, plan, path = saved
    for _ in range(3):
        plan = shaken(plan.copy())
        plan.save(path), plan.save(path)
        assert len(list(path.parent.iterdir())) == 2
        assert Plan.load(path).hash == plan.hash


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
    good = load_file(tensors)
    for wrong in (torch.int32, torch.float8_e4m3fn, torch.complex64, torch.bool):
        save_file({k: v.to(wrong) for k, v in good.items()}, tensors)
        with pytest.raises(PlanError, match="expected float parameters"):
            Plan.load(sealed(path))


def test_saved_loaded_and_hashed(tmp_path):
    net, x = model(), images()
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
        Plan.load(sealed(path))


def test_made_under_inference_mode(tmp_path):
    net, x = model(), images()
    plan = changed(net)
    path = plan.save(tmp_path / "plan.json")
    with torch.inference_mode():
        loaded = Plan.load(path)
        close(compiled(net, loaded, "eager")(x), expected(net, plan, x))
    with torch.no_grad():
        close(compiled(net, loaded, "eager")(x), expected(net, plan, x))


AGED = house.ROOT / "tests" / "aged"
"""A plan written before the modules were moved into rooms; its README says how."""


@pytest.fixture
def aged():
    return Plan.load(AGED / "plan.json"), json.loads((AGED / "facts.json").read_text())


def test_an_aged_plan_loads_as_it_was(aged):
    plan, facts = aged
    assert (plan.hash, plan.structure) == (facts["hash"], facts["structure"])
    forms = {name: entry.form for name, entry in plan.sites.items()}
    assert forms == {f"blocks.{i}.attn": f for i, f in enumerate(("sigmoid", "hydra", "skipat"))}
    assert {site: len(deltas) for site, deltas in plan.deltas.items()} == {
        "blocks.0.attn": 4,
        "blocks.1.attn": 4,
    }
    assert plan.measured == {"held_out": {"drop": 0.0}}
    (tile,) = plan.tiles_for({"device": "somewhere"}).values()
    assert tile == Tile(block_m=64)


def test_an_aged_plan_computes_what_it_did(aged):
    plan, facts = aged
    task = tiny()
    module = attnpass.convert(task.model, plan, *task.example)
    with torch.no_grad():
        got = module(*task.example).double()
    want = torch.tensor(facts["output"], dtype=torch.float64)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert error(got, task.model(*task.example).double()) > 1e-2, "the plan changes the model"


def test_a_plan_of_an_aged_file_is_saved_the_same(aged, tmp_path):
    plan, _ = aged
    plan.save(tmp_path / "plan.json")
    for name in ("plan.json", "plan.safetensors"):
        assert (tmp_path / name).read_bytes() == (AGED / name).read_bytes()


def test_given_tensors_take_the_place_of_the_file(saved):
    _, plan, path = saved
    path.with_suffix(".safetensors").unlink()
    again = Plan.from_dict(json.loads(path.read_text()), path, plan.tensors())
    assert again.hash == plan.hash


def test_the_stored_part_of_a_plan_is_a_record(saved):
    _, plan, path = saved
    stored = Document.load(path)
    assert stored.as_dict() == plan.as_dict()
    assert stored.tensors().keys() == plan.tensors().keys()
    with pytest.raises(FrozenInstanceError):
        stored.sites = {}


def test_a_folder_that_cannot_be_written(saved, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PlanError, match="expected to write the plan to .*choose another folder"):
        saved[1].save(tmp_path / "file" / "plan.json")
