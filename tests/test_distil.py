"""Distillation: the losses are what they say, the model stays, a run repeats and goes on."""

from __future__ import annotations

import copy

import pytest
import torch
from test_delta import Broken, data
from test_delta import model as random_model
from torch import Tensor, nn

import attnpass
from attnpass import Capture, Plan, forms
from attnpass.distillation import add_deltas
from attnpass.errors import MeasureError, OptionError
from attnpass.objectives import Global, Local, Unit, relative
from attnpass.trainer import Checkpoint, DistilOptions, Trainer

FORMS = {
    "sigmoid": {},
    "relu": {},
    "hydra": {},
    "skipat": {"r": 0.5, "kernel": 3},
}


def model() -> nn.Module:
    """Random, but with attention that looks somewhere and tokens that differ."""
    net = random_model()
    with torch.no_grad():
        net.pos_embed.mul_(30)
        for block in net.blocks:
            block.attn.qkv.weight.mul_(6)
    return net


def batches(n: int = 3, size: int = 4) -> list[tuple[Tensor]]:
    x = torch.rand(n * size, 1, 32, 32, generator=torch.Generator().manual_seed(5))
    return [(part,) for part in x.split(size)]


def planned(net: nn.Module, form: str = "sigmoid", **given) -> Plan:
    plan = Plan.create(net, data(), form=form, form_options=FORMS.get(form), **given)
    attnpass.calibrate(net, plan, batches())
    return plan


def prepared(net: nn.Module, plan: Plan, rank: int | None = None) -> Capture:
    """A capture of the original, and deltas that are not 0."""
    capture = Capture(net).trace(data())
    add_deltas(capture, plan, DistilOptions(rank=rank))
    generator = torch.Generator().manual_seed(3)
    for deltas in plan.deltas.values():
        for delta in deltas.values():
            for p in delta.parameters():
                p.data.add_(torch.randn(p.shape, generator=generator) * 0.02)
    return capture


def by_hand(net: nn.Module, plan: Plan, site: str, at: int, x: Tensor) -> Tensor:
    """The local loss of a block's attention, written out in float64."""
    net = copy.deepcopy(net).double()
    inputs, outputs = {}, {}
    for i, block in enumerate(net.blocks):
        block.attn.register_forward_hook(
            lambda m, given, out, i=i: inputs.update({i: given[0]}) or outputs.update({i: out})
        )
    with torch.no_grad():
        net(x.double())
    values = {k: v.double() for k, v in plan.values[site].items()}
    found = {s.name: s for s in Capture(net).trace(x.double()).sites}[site]
    form = forms.build(plan.sites[site].form, found, plan.sites[site].options)
    if isinstance(form, forms.SkipAt):
        got = torch.func.functional_call(form, values, (outputs[at - 1],))
    else:
        attn, deltas = net.blocks[at].attn, plan.deltas[site]
        w = {n: deltas[f"{site}.{n}"].add(p.detach()) for n, p in attn.named_parameters()}
        b, n, d = inputs[at].shape
        qkv = nn.functional.linear(inputs[at], w["qkv.weight"], w["qkv.bias"])
        q, k, v = qkv.reshape(b, n, 3, attn.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = torch.func.functional_call(form, values, (q, k, v))
        mixed = mixed.transpose(1, 2).reshape(b, n, d)
        got = nn.functional.linear(mixed, w["proj.weight"], w["proj.bias"])
    want = outputs[at]
    return (got - want).square().sum() / want.square().sum()


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("form", FORMS)
def test_the_local_loss_and_its_gradients(form, rank):
    net = model()
    plan = planned(net, form)
    capture = prepared(net, plan, rank)
    local = Local(capture, {"": plan})
    (x,) = batches()[0]
    found = {unit.parameters[0]: (unit, loss) for unit, loss in local.losses((x,))}
    sites = [n for n, e in plan.sites.items() if e.form == form]
    assert len(found) == len(sites) == (2 if form == "skipat" else 3)
    for site in sites:
        unit, loss = found[local.units["", site].parameters[0]]
        want = by_hand(net, plan, site, int(site.split(".")[1]), x)
        torch.testing.assert_close(loss.double(), want, rtol=1e-4, atol=1e-6)
        got = torch.autograd.grad(loss, unit.parameters)
        expected = torch.autograd.grad(want, unit.parameters)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 + 1e-3 * float(b.abs().max()))


def test_plans_learn_side_by_side_as_they_would_alone():
    net = model()
    plans = {form: planned(net, form) for form in ("sigmoid", "hydra")}
    capture = prepared(net, plans["sigmoid"])
    prepared(net, plans["hydra"])
    batch = batches()[0]
    both = Local(capture, plans)
    together = both.judge(batch)
    for form, plan in plans.items():
        alone = Local(Capture(net).trace(data()), {form: plan}).judge(batch)
        assert alone == {at: loss for at, loss in together.items() if at[0] == form}
        assert len(alone) == 3


def test_the_global_loss():
    net = model()
    plan = planned(net)
    capture = prepared(net, plan)
    (x,) = batches()[0]
    ((_, loss),) = Global(net, capture, plan, "logits", ()).losses((x,))
    features = []
    teacher = copy.deepcopy(net)
    teacher.head.register_forward_hook(lambda m, given, out: features.append(given[0]))
    student = copy.deepcopy(net)
    student.head.register_forward_hook(lambda m, given, out: features.append(given[0]))
    merged = plan.merge_into(student)
    with torch.no_grad():
        want = teacher(x)
        # the hooks of a converted module are gone: its features are read off its last block
        got = attnpass.convert(student, merged, x)(x)
        p, q = (want / 2).softmax(-1), (got / 2).softmax(-1)
        divergence = 4 * (p * (p / q).log()).sum(-1).mean()
        weight, bias = net.head.weight.double(), net.head.bias.double()
        back = torch.linalg.pinv(weight)
        # a head of full row rank: differences of features inside its row space can be seen
        seen = (got.double() - bias) @ back.T - (want.double() - bias) @ back.T
    assert float(loss.detach()) > float(divergence)
    rest = float(loss.detach()) - float(divergence)
    assert rest >= float(seen.square().sum() / features[0].square().sum()) * 0.999
    ((_, plain),) = Global(net, capture, plan, "features", ()).losses((x,))
    torch.testing.assert_close(
        float(plain.detach()) - rest, float(relative(got, want)), rtol=1e-3, atol=1e-5
    )


def state(net: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}


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
    judge = Global(net, capture, plan, "logits", ()).judge(batches()[2])
    was = Global(net, capture, start, "logits", ()).judge(batches()[2])
    assert judge["", ""] < 0.9 * was["", ""]
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
    attnpass.distil(net, plan, batches(), steps=4)
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_labels_order_and_noise_come_from_the_seed():
    class Noisy:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> tuple[Tensor]:
            return (batches()[i][0] + 0.1 * torch.rand(4, 1, 32, 32),)

    net, found = model(), []
    for seed in (0, 0, 1):
        plan = planned(net, "hydra")
        attnpass.distil(net, plan, Noisy(), steps=6, seed=seed)
        found.append(plan.hash)
        torch.rand(1)
    assert found[0] == found[1] != found[2]


class Stopped(Exception):
    pass


@pytest.mark.parametrize("at", [("local", 5), ("global", 2), ("global", 7)])
def test_an_interrupted_run_goes_on_to_the_same_end(at, tmp_path, monkeypatch):
    monkeypatch.setattr("attnpass.trainer.SAVE", 0.0)  # every step is saved
    net = model()
    given = {"steps": 16, "local": 0.5, "rank": 2, "selection": batches(1)}
    whole = planned(net)
    stages = attnpass.distil(net, whole, batches(), **given)

    def stop(stage: str, step: int, steps: int, loss: float) -> None:
        if (stage, step) == at:
            raise Stopped

    file = tmp_path / "state"
    with pytest.raises(Stopped):
        attnpass.distil(net, planned(net), batches(), checkpoint=file, progress=stop, **given)
    told = []
    plan = planned(net)
    resumed = attnpass.distil(
        net, plan, batches(), checkpoint=file, progress=lambda *x: told.append(x), **given
    )
    assert len(told) < 16 - at[1] - (8 if at[0] == "global" else 0) + 2
    assert plan.hash == whole.hash and not file.exists()
    assert [s.looks for s in resumed] == [s.looks for s in stages]
    assert [s.losses for s in resumed] == [s.losses for s in stages]


def test_a_checkpoint_of_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("attnpass.trainer.SAVE", 0.0)
    net, file = model(), tmp_path / "state"

    def stop(*_: object) -> None:
        if file.exists():
            raise Stopped

    with pytest.raises(Stopped):
        attnpass.distil(net, planned(net), batches(), steps=8, checkpoint=file, progress=stop)
    with pytest.raises(OptionError, match="got one of others; delete it"):
        attnpass.distil(net, planned(net), batches(), steps=9, checkpoint=file)
    file.write_bytes(b"something")
    with pytest.raises(OptionError, match="expected a checkpoint of a distillation at"):
        attnpass.distil(net, planned(net), batches(), steps=8, checkpoint=file)


class Scripted:
    """An objective whose losses on the selection are given."""

    name = "local"

    def __init__(self, looks: list[float]) -> None:
        self.value = nn.Parameter(torch.zeros(()))
        self.units = {("", "a"): Unit([(self.value, 1.0, False)])}
        self.looks, self.seen = looks, []

    def losses(self, batch):
        yield self.units["", "a"], self.value * 1.0

    def judge(self, batch):
        self.seen.append(self.value.item())
        return {("", "a"): self.looks[len(self.seen) - 1]}


def test_a_stage_that_no_longer_improves_ends_and_its_best_is_kept():
    objective = Scripted([3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 0.5])
    trainer = Trainer(objective, DistilOptions(steps=100), 1.0, Checkpoint(None, ""))
    stage = trainer.run(batches(), batches(1), None)
    assert stage.steps == 60 and stage.kept == {"|a": 20}
    assert [loss for _, loss in stage.looks] == objective.looks[:6]
    assert objective.value.item() == objective.seen[1] != objective.seen[5]


def test_looks_take_a_small_share_of_a_budget_of_time(monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr("attnpass.trainer.time.monotonic", lambda: float(next(clock)))
    seen = []
    for budget in (1000.0, 100.0):
        objective = Scripted([1.0 / (i + 1) for i in range(10_000)])
        trainer = Trainer(objective, DistilOptions(budget=budget), 1.0, Checkpoint(None, ""))
        stage = trainer.run(batches(), batches(8), None)
        seen.append(len(objective.seen) / len(stage.looks))
    # the clock ticks once a reading: 2 % of 1000 hold all 8 batches, of 100 the third is too late
    assert seen == [8.0, 3.0]


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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "expected steps > 0"),
        ({"budget": 0.0}, "expected a budget of seconds > 0"),
        ({"local": 1.5}, "expected a local share from 0 to 1"),
        ({"rank": -1}, "expected a rank >= 0"),
        ({"rate": 0.0}, "expected a rate > 0"),
        ({"outputs": "labels"}, "expected outputs 'logits' or 'features'"),
        ({"epochs": 3}, "expected options of budget, steps, .*epochs"),
    ],
)
def test_wrong_options_are_one_line(given, message):
    net = model()
    with pytest.raises(OptionError, match=message):
        attnpass.distil(net, Plan({}), batches(), **given)


def test_no_inputs_and_values_that_are_not_finite():
    net = model()
    with pytest.raises(OptionError, match="expected at least one batch of inputs to distil on"):
        attnpass.distil(net, planned(net), [])
    plan = planned(net)
    with torch.no_grad():
        plan.values["blocks.1.attn"]["gain"].fill_(float("nan"))
    with pytest.raises(MeasureError, match="expected a finite loss, got nan at step 0"):
        attnpass.distil(net, plan, batches(), steps=4)


def test_a_budget_of_time_is_kept(monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr("attnpass.trainer.time.monotonic", lambda: float(next(clock)))
    objective = Scripted([1.0 / (i + 1) for i in range(1000)])
    options = DistilOptions(budget=200.0)
    stage = Trainer(objective, options, 0.5, Checkpoint(None, "")).run(batches(), [], None)
    # a step that has begun is finished: the clock is read a few times in each
    assert 100 <= stage.seconds <= 104 and stage.total == stage.steps > 10


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_layers_that_share_a_graph_learn_each_for_itself():
    net = Broken().eval()
    net.net = model()
    plan = Plan.create(net, data(), form="sigmoid")
    attnpass.calibrate(net, plan, batches())
    stages = attnpass.distil(net, plan, batches(), steps=12, outputs="features")
    assert [s.losses[-1] < s.losses[0] for s in stages] == [True, True]
    assert sorted(plan.deltas) == [f"net.blocks.{i}.attn" for i in range(3)]


class Padded(nn.Module):
    """A block over ``[B, T, D]`` with a padding mask ``[B, T]``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.MultiheadAttention(8, 2, batch_first=True) for _ in "ab")

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        for attn in (self.first, self.second):
            x = x + attn(x, x, x, key_padding_mask=~keep, need_weights=False)[0]
        return (x * keep[..., None]).sum(1)


@pytest.mark.parametrize("form", ["sigmoid", "hydra", "skipat"])
def test_padding_has_no_part_in_the_local_loss(form):
    torch.manual_seed(0)
    net = Padded().train()
    x = torch.randn(2, 6, 8)
    keep = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    plan = Plan.create(net, x, keep, form=form, form_options=FORMS[form])
    assert form in {e.form for e in plan.sites.values()}
    local = Local(Capture(net).trace(x, keep), {"": plan})
    first = local.judge((x, keep))
    other = x.clone()
    other[1, 3:] = 7.0
    assert local.judge((other, keep)) == pytest.approx(first, rel=1e-4)
    other[1, :3] = 7.0
    assert local.judge((other, keep)) != pytest.approx(first, rel=1e-2)


def test_bfloat16_models_learn_too():
    net = model().bfloat16()
    given = [(x.bfloat16(),) for (x,) in batches()]
    plan = Plan.create(net, *given[0], form="sigmoid")
    attnpass.calibrate(net, plan, given)
    stages = attnpass.distil(net, plan, given, steps=16)
    assert all(s.losses[-1] < s.losses[0] for s in stages)
    assert all(p.dtype == torch.float32 for p in plan.parameters())
