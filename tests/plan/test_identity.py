"""The identity of a plan, of its sites and of the weights it was made for."""

import logging

import pytest
import torch
from deltas import changed, compiled, model
from deltas import data as images
from plans import build, data, edited

from attnpass import Capture, Plan
from attnpass.fingerprint import digest_weights
from attnpass.plan import Entry
from attnpass.plan.identity import Bindings, plan_hash, structure_digest, weights_digest


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


def test_weights_that_were_trained_with_the_deltas_are_no_others(caplog):
    net, x = model(), images()
    plan = changed(net)
    with torch.no_grad():
        net.blocks[0].attn.qkv.weight.add_(0.1)  # as the user's optimiser does
    with caplog.at_level(logging.WARNING, "attnpass"), torch.no_grad():
        compiled(net, plan, "eager")(x)
        Capture(net).trace(x).use(plan)
    assert "trained on other weights" not in caplog.text


@pytest.mark.parametrize("way", ["capture", "compiled"])
def test_deltas_on_weights_they_were_not_trained_on_are_told_once(way, tmp_path, caplog):
    net, x = model(), images()
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


def test_bindings_keep_no_parameter_alive():
    bindings, one, two = Bindings(), torch.ones(2), torch.ones(3)
    assert not bindings and bindings.parameters_of("a") == []
    bindings.bind("a", [one, two])
    assert bindings and [id(p) for p in bindings.parameters_of("a")] == [id(one), id(two)]
    assert bindings.parameter_ids() == {id(one), id(two)}
    del two
    assert [id(p) for p in bindings.parameters_of("a")] == [id(one)]


def test_other_weights_are_foreign_the_first_time_they_are_met():
    weight, other = torch.ones(2), torch.zeros(2)
    digest = digest_weights([weight])
    for met, foreign in ((torch.ones(2), False), (other, True)):
        bindings = Bindings()
        assert bindings.are_foreign("a", [met], digest) is foreign
        assert not bindings.are_foreign("a", [other], digest)


def test_bound_weights_are_foreign_only_when_a_delta_was_merged():
    weight = torch.ones(2)
    for merged in (False, True):
        bindings = Bindings()
        bindings.bind("a", [weight])
        if merged:
            bindings.add_merged(weight)
            assert bindings.merged_ids() == {id(weight)}
        assert bindings.are_foreign("a", [weight], "another digest") is merged
        assert bindings.copy().parameters_of("a") and not bindings.copy().merged_ids()


def test_digests_of_entries():
    entries = {"b": Entry("relu", fits={"heads": 2}, weights="w"), "a": Entry("softmax")}
    turned = dict(reversed(entries.items()))
    assert structure_digest(entries) == structure_digest(turned)
    assert weights_digest(entries) == weights_digest(turned)
    other = entries | {"b": Entry("hydra", fits={"heads": 2}, weights="v")}
    assert structure_digest(entries) == structure_digest(other)
    assert weights_digest(entries) != weights_digest(other)
    assert structure_digest(entries) != structure_digest({"a": entries["a"]})


def test_a_hash_counts_only_entries_that_run():
    entries = {"a": Entry("relu"), "b": Entry("softmax")}

    def hashed(runs):
        return plan_hash(entries, {}, {}, runs)

    assert hashed(lambda e: e.changes) == plan_hash({"a": entries["a"]}, {}, {}, lambda e: True)
    assert hashed(lambda e: e.changes) != hashed(lambda e: True)
