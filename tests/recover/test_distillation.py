"""Distillation as a library call: the converted model comes nearer, the model stays."""

from __future__ import annotations

import pytest
import torch
from recovery_problems import (
    FORMS,
    GraphPerBlock,
    batches,
    data,
    model,
    planned,
    random_model,
    state,
)
from tiny_tasks import Named
from torch import Tensor, nn

import attnpass
from attnpass import Capture, Plan
from attnpass.errors import MeasureError, OptionError
from attnpass.recover.global_loss import GlobalLoss
from attnpass.recover.objective import mean_losses
from attnpass.recover.options import DistilOptions


# both stages of every form: distillation does what it is for
@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_converted_model_comes_nearer_and_the_model_stays(form):
    net = model()
    before = state(net)
    # the class token of a skipped layer is the one before: the last layer must read its patches
    sites = ["blocks.1.attn"] if form == "skipat" else None
    plan, start = (planned(net, form, sites=sites) for _ in "ab")
    told = []
    stages = attnpass.distil(
        net,
        plan,
        batches(),
        steps=40,
        local=0.5,
        selection=batches(1),
        progress=lambda *given: told.append(given[:3]),
    )
    assert [s.name for s in stages] == ["local", "global"]
    assert told[0] == ("local", 1, 20) and told[-1] == ("global", stages[1].steps, 20)
    assert len(told) == sum(s.steps for s in stages) > 20
    capture = Capture(net).trace(data())
    now = mean_losses(GlobalLoss(net, capture, plan, "logits", ()), batches()[2])
    was = mean_losses(GlobalLoss(net, capture, start, "logits", ()), batches()[2])
    assert now["", ""] < 0.9 * was["", ""]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    for stage in stages:
        assert min(x for _, x in stage.looks) < stage.looks[0][1] and stage.seconds > 0
    deltas = {k for k in plan.tensors() if k.count("|") == 2}
    assert bool(deltas) == (form != "skipat")


def test_a_model_in_training_mode_keeps_its_buffers():
    net = model().train()
    before = state(net)
    plan = planned(net)
    attnpass.distil(net, plan, batches(), steps=4, local=0.5)
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


# three whole runs: the seed decides all random numbers
@pytest.mark.slow
def test_labels_order_and_noise_come_from_the_seed():
    class Noisy:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> tuple[Tensor]:
            return (batches()[i][0] + 0.1 * torch.rand(4, 1, 32, 32),)

    net, found = model(), []
    for seed in (0, 0, 1):
        plan = planned(net, "hydra")
        attnpass.distil(net, plan, Noisy(), steps=6, local=0.5, seed=seed)
        found.append(plan.hash)
        torch.rand(1)
    assert found[0] == found[1] != found[2]


def test_a_model_comes_nearer_in_narrow_products():
    net, losses = model(), []
    for autocast in (False, True):
        plan = planned(net)
        given = {"steps": 12, "selection": batches(1), "autocast": autocast}
        (stage,) = attnpass.distil(net, plan, batches(), **given)
        losses.append([loss for _, loss in stage.looks])
        assert all(p.dtype == torch.float32 for p in plan.parameters())
    wide, narrow = losses
    assert wide != narrow and narrow[-1] < 0.9 * narrow[0]
    assert narrow == pytest.approx(wide, rel=0.1)


def test_rank_0_trains_the_forms_alone_and_frozen_ones_stay():
    net = model()
    plan = planned(net)
    plan.values["blocks.0.attn"]["b"].requires_grad_(False)
    before = {k: v.clone() for k, v in plan.tensors().items()}
    attnpass.distil(net, plan, batches(), steps=9, rank=0)
    after = plan.tensors()
    assert set(after) == set(before) and not plan.deltas
    same = {k for k in after if torch.equal(after[k], before[k])}
    assert same == {"blocks.0.attn|b"}


def test_a_softmax_plan_has_nothing_to_learn():
    net = model()
    assert attnpass.distil(net, Plan.create(net, data()), batches(), steps=4) == []


def test_no_inputs_and_values_that_are_not_finite():
    net = model()
    with pytest.raises(OptionError, match="expected at least one batch of inputs to distil on"):
        attnpass.distil(net, planned(net), [])
    plan = planned(net)
    with torch.no_grad():
        plan.values["blocks.1.attn"]["gain"].fill_(float("nan"))
    with pytest.raises(MeasureError, match="expected a finite loss, got nan at step 0"):
        attnpass.distil(net, plan, batches(), steps=4)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_layers_that_share_a_graph_learn_each_for_itself():
    net = GraphPerBlock().eval()
    net.net = model()
    plan = Plan.create(net, data(), form="sigmoid")
    stages = attnpass.distil(net, plan, batches(), steps=12, local=0.5, outputs="features")
    assert [s.losses[-1] < s.losses[0] for s in stages] == [True, True]
    assert sorted(plan.deltas) == [f"net.blocks.{i}.attn" for i in range(3)]


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_models_learn_too(form):
    net = model().bfloat16()
    given = [(x.bfloat16(),) for (x,) in batches()]
    plan = Plan.create(net, *given[0], form=form, form_options=FORMS[form])
    attnpass.calibrate(net, plan, given)
    stages = attnpass.distil(net, plan, given, steps=16, local=0.5)
    assert all(s.losses[-1] < s.losses[0] for s in stages)
    assert all(p.dtype == torch.float32 for p in plan.parameters())


def test_dropout_is_the_same_in_every_run():
    found = []
    for _ in "ab":
        net = model()
        net.head = nn.Sequential(nn.Dropout(0.5), net.head).train()
        plan = planned(net)
        given = batches()
        stages = attnpass.distil(net, plan, given[:2], steps=6, local=0.5, selection=given[2:])
        found.append((plan.hash, [s.looks for s in stages]))
        torch.rand(3)
    assert found[0] == found[1]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_trains_whatever_the_mode_it_is_called_in(mode):
    net = model()
    plan = planned(net)
    with mode():
        stages = attnpass.distil(net, plan, batches(), steps=8, local=0.4)
    assert [s.steps for s in stages] == [3, 5]
    assert any(
        p.abs().max() > 0 for d in plan.deltas.values() for x in d.values() for p in x.parameters()
    )


def test_what_was_measured_before_is_void_and_the_plan_belongs_to_the_weights(caplog):
    net = model()
    plan = planned(net)
    plan.measured = {"held_out": {"score": 0.9}}
    plan.sites["blocks.0.attn"].weights = "another"
    attnpass.distil(net, plan, batches(), steps=2)
    assert plan.measured == {}
    Capture(net).trace(data()).use(plan)
    assert "trained on other weights" not in caplog.text


def test_a_frozen_plan_stays_as_it_is():
    net = model()
    plan = planned(net).frozen()
    before = plan.hash
    assert attnpass.distil(net, plan, batches(), steps=2) == []
    assert plan.hash == before and not plan.deltas


def test_stages_share_the_steps_exactly():
    net = model()
    stages = attnpass.distil(net, planned(net), batches(), steps=3, local=0.5)
    assert [(s.name, s.steps) for s in stages] == [("local", 2), ("global", 1)]
    stages = attnpass.distil(net, planned(net), batches(), steps=1, local=0.4)
    assert [(s.name, s.steps) for s in stages] == [("global", 1)], (
        "no step is left to the local one"
    )


# calibration and both stages on batches of either kind
@pytest.mark.slow
def test_batches_may_name_their_arguments():
    net, found = model(), []
    for made in (net, Named(net)):
        wanted = batches() if made is net else [{"image": x} for (x,) in batches()]
        example = ((data(),), {}) if made is net else ((), {"image": data()})
        plan = Plan.create(made, *example[0], form="sigmoid", **example[1])
        errors = attnpass.calibrate(made, plan, wanted)
        attnpass.distil(made, plan, wanted, steps=2, local=0.5, selection=wanted[:1])
        found.append((list(errors.values()), list(plan.tensors().values())))
    assert found[0][0] == pytest.approx(found[1][0])
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("learn", [attnpass.calibrate, attnpass.distil])
def test_what_is_no_sequence_of_batches_is_one_line(learn):
    net = model()
    plan = Plan.create(net, data(), form="sigmoid")
    for inputs, message in (
        (data(), "a dict of its named ones, got Tensor"),
        ([data()], "a dict of its named ones, got Tensor"),
        ([], "at least one batch"),
    ):
        with pytest.raises(OptionError, match=message):
            learn(net, plan, inputs)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data()))
    # calibration takes any iterable: there it is the loader's batches that are lists
    message = r"DataLoader; list\(...\)" if learn is attnpass.distil else r"got list; .* is \(x,\)"
    with pytest.raises(OptionError, match=message):
        learn(net, plan, loader)


def test_the_selection_is_checked_and_need_not_be_a_list():
    class Made:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, i: int) -> tuple[Tensor]:
            return batches()[int(i)]

    net = model()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data()))
    for selection, message in (
        (loader, r"sequence of batches to select on, got DataLoader; list\(...\)"),
        ([data()], r"select on that are tuples .* got Tensor"),
    ):
        with pytest.raises(OptionError, match=message):
            attnpass.distil(net, planned(net), batches(), selection=selection, steps=2)
    ends = [planned(net), planned(net)]
    for plan, selection in zip(ends, (Made(), batches()[:2]), strict=True):
        attnpass.distil(net, plan, batches(), selection=selection, steps=2)
    assert ends[0].hash == ends[1].hash


def test_a_plan_made_in_inference_mode_learns():
    net = model()
    with torch.inference_mode():
        plan = Plan.create(net, data(), form="sigmoid")
        attnpass.calibrate(net, plan, batches())
    before = plan.hash
    attnpass.distil(net, plan, batches(), steps=2)
    assert plan.hash != before


# two whole runs: deltas beside softmax make up for an identity
@pytest.mark.slow
def test_attention_that_stays_softmax_learns_where_it_may():
    net = random_model()
    x = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    start = Plan.create(net, x, form="skipat", form_options={"r": 0.5}, sites="blocks.1.attn")
    attnpass.calibrate(net, start, [(x,)])
    left, plans = {}, {}
    for softmax in (False, True):
        plan = plans[softmax] = start.copy()
        options = DistilOptions(steps=30, local=0.2, softmax=softmax, autocast=False)
        *_, stage = attnpass.distil(net, plan, [(x,)], options=options)
        left[softmax] = stage.best["|"]
    assert plans[False].deltas == {}
    assert sorted(plans[True].deltas) == ["blocks.0.attn", "blocks.2.attn"]
    assert all(
        any(bool(p.any()) for p in d.parameters())
        for own in plans[True].deltas.values()
        for d in own.values()
    )
    assert left[True] < 0.9 * left[False], left
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    errors = attnpass.calibrate(net, plans[True], [(x,)])
    assert errors["blocks.0.attn"] == errors["blocks.2.attn"] == 0
    with pytest.raises(OptionError, match="expected learns true or false, got 3"):
        Plan.create(net, x, form="softmax", form_options={"learns": 3})
