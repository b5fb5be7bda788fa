"""Distillation: the losses are what they say, the model stays, a run repeats and goes on."""

from __future__ import annotations

import copy

import pytest
import torch
from deltas import Broken, data
from deltas import model as random_model
from tiny_tasks import Named
from torch import Tensor, nn

import attnpass
from attnpass import Capture, Plan, forms
from attnpass.errors import MeasureError, OptionError
from attnpass.fingerprint import digest_weights
from attnpass.plan.delta import Delta
from attnpass.plan.entry import Entry
from attnpass.recover import losses as objectives
from attnpass.recover.checkpoint import Checkpoint
from attnpass.recover.distillation import add_deltas
from attnpass.recover.losses import FEATURES, Global, Local, Unit, judge
from attnpass.recover.options import DistilOptions
from attnpass.recover.trainer import SCALE, Trainer

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


CALIBRATED: dict[tuple[str, str], dict] = {}
"""Values of plans, by what they were and the model's weights: calibration takes seconds."""


def planned(net: nn.Module, form: str = "sigmoid", **given) -> Plan:
    plan = Plan.create(net, data(), form=form, form_options=FORMS.get(form), **given)
    known = plan.hash, digest_weights(net.state_dict().values())
    if known not in CALIBRATED:
        attnpass.calibrate(net, plan, batches())
        CALIBRATED[known] = plan.values
    plan.values = copy.deepcopy(CALIBRATED[known])
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


class ByHand(nn.Module):
    """A block's attention with a form, written out."""

    def __init__(self, attn: nn.Module, form: nn.Module, plan: Plan, site: str) -> None:
        super().__init__()
        self.heads, self.form = attn.heads, form
        self.values = {k: v.to(attn.qkv.weight.dtype) for k, v in plan.values[site].items()}
        deltas = plan.deltas[site]
        self.w = {n: deltas[f"{site}.{n}"].add(p.detach()) for n, p in attn.named_parameters()}

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        qkv = nn.functional.linear(x, self.w["qkv.weight"], self.w["qkv.bias"])
        q, k, v = qkv.reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = torch.func.functional_call(self.form, self.values, (q, k, v))
        mixed = mixed.transpose(1, 2).reshape(b, n, d)
        return nn.functional.linear(mixed, self.w["proj.weight"], self.w["proj.bias"])


def built(net: nn.Module, plan: Plan, site: str, x: Tensor) -> nn.Module:
    found = {s.name: s for s in Capture(net).trace(x).sites}[site]
    return forms.build(plan.sites[site].form, found, plan.sites[site].options)


def by_hand(net: nn.Module, plan: Plan, site: str, at: int, x: Tensor) -> Tensor:
    """The local loss of a block's attention in float64."""
    net, x = copy.deepcopy(net).double(), x.double()
    inputs, outputs = {}, {}
    for i, block in enumerate(net.blocks):
        block.attn.register_forward_hook(
            lambda m, given, out, i=i: inputs.update({i: given[0]}) or outputs.update({i: out})
        )
    with torch.no_grad():
        net(x)
    form = built(net, plan, site, x)
    if isinstance(form, forms.SkipAt):
        values = {k: v.double() for k, v in plan.values[site].items()}
        got = torch.func.functional_call(form, values, (outputs[at - 1],))
    else:
        got = ByHand(net.blocks[at].attn, form, plan, site)(inputs[at])
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
    found = dict(local.losses((x,)))
    sites = [n for n, e in plan.sites.items() if e.form == form]
    assert len(found) == len(sites) == (2 if form == "skipat" else 3)
    for site in sites:
        unit, loss = local.units["", site], found["", site]
        want = by_hand(net, plan, site, int(site.split(".")[1]), x)
        torch.testing.assert_close(loss.double(), want, rtol=1e-4, atol=1e-6)
        got = torch.autograd.grad(loss, unit.parameters)
        expected = torch.autograd.grad(want, unit.parameters)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 + 1e-3 * float(b.abs().max()))


def test_plans_learn_side_by_side_as_they_would_alone():
    net, found = model(), []
    for labels in (("sigmoid", "hydra"), ("sigmoid",), ("hydra",)):
        plans = {form: planned(net, form) for form in labels}
        capture = Capture(net).trace(data())
        for plan in plans.values():
            add_deltas(capture, plan, DistilOptions())
        trainer = Trainer(Local(capture, plans), DistilOptions(steps=6), 1.0, Checkpoint(None, ""))
        trainer.run(batches(), batches(1), None)
        found.append({label: plan.hash for label, plan in plans.items()})
    assert found[0] == found[1] | found[2]


def test_the_global_loss():
    net = model()
    plan = planned(net)
    capture = prepared(net, plan)
    (x,) = batches()[0]
    ((_, loss),) = Global(net, capture, plan, "logits", ()).losses((x,))
    ((_, plain),) = Global(net, capture, plan, "features", ()).losses((x,))

    def read(net: nn.Module) -> tuple[Tensor, list[Tensor]]:
        """Its output, and what its linear layers outside the attention read."""
        found = []
        for name, layer in net.named_modules():
            if isinstance(layer, nn.Linear) and ".attn" not in name:
                layer.register_forward_pre_hook(lambda m, given: found.append(given[0]))
        with torch.no_grad():
            return net(x), found

    student = copy.deepcopy(net)
    for i, block in enumerate(student.blocks):
        site = f"blocks.{i}.attn"
        block.attn = ByHand(block.attn, built(net, plan, site, x), plan, site)
    (want, features), (got, own) = read(copy.deepcopy(net)), read(student)
    assert len(features) == 7
    p, q = (want / 2).softmax(-1), (got / 2).softmax(-1)
    divergence = 4 * (p * (p / q).log()).sum(-1).mean()
    off = sum(
        (b - a).square().sum() / a.square().sum() for a, b in zip(features, own, strict=True)
    )
    square = (got - want).square().sum() / want.square().sum()
    added = FEATURES * off / len(features)
    torch.testing.assert_close(loss.detach(), divergence + added, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(plain.detach(), square + added, rtol=1e-3, atol=1e-5)


def test_classes_that_are_ruled_out_do_not_spoil_the_global_loss():
    class Ruled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def forward(self, x: Tensor) -> Tensor:
            out = torch.arange(10) == 3
            return self.net(x).masked_fill(out, -float("inf"))

    net = Ruled().eval()
    plan = Plan.create(net, data(), form="sigmoid")
    attnpass.calibrate(net, plan, batches())
    (stage,) = attnpass.distil(net, plan, batches(), steps=6, local=0)
    assert 0 < stage.losses[-1] < 10


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
    now = judge(Global(net, capture, plan, "logits", ()), batches()[2])
    was = judge(Global(net, capture, start, "logits", ()), batches()[2])
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


class Stopped(Exception):
    pass


@pytest.mark.parametrize("at", [("local", 5), ("global", 2), ("global", 7)])
def test_an_interrupted_run_goes_on_to_the_same_end(at, tmp_path, monkeypatch):
    monkeypatch.setattr("attnpass.recover.trainer.SAVE", 0.0)  # every step is saved
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


def test_the_interrupted_plan_itself_goes_on(tmp_path):
    net, file = model(), tmp_path / "state"

    def stop(stage: str, step: int, steps: int, loss: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    plan, whole = planned(net), planned(net)
    attnpass.distil(net, whole, batches(), steps=12, local=0)
    given = {"steps": 12, "local": 0, "checkpoint": file}
    with pytest.raises(KeyboardInterrupt):
        attnpass.distil(net, plan, batches(), progress=stop, **given)
    attnpass.distil(net, plan, batches(), **given)
    assert plan.hash == whole.hash


def test_a_checkpoint_of_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("attnpass.recover.trainer.SAVE", 0.0)
    net, file = model(), tmp_path / "state"

    def stop(*_: object) -> None:
        if file.exists():
            raise Stopped

    with pytest.raises(Stopped):
        attnpass.distil(net, planned(net), batches(), steps=8, checkpoint=file, progress=stop)
    other = model()
    other.head.weight.data.mul_(2)
    for changed in (
        {"steps": 9},
        {"model": other},
        {"plan": planned(net, "relu")},
        {"inputs": batches()[::-1]},
    ):
        given = {"model": net, "plan": planned(net), "inputs": batches(), "steps": 8} | changed
        with pytest.raises(OptionError, match="got one of others; delete it"):
            attnpass.distil(**given, checkpoint=file)
    file.write_bytes(b"something")
    with pytest.raises(OptionError, match="expected a checkpoint of a distillation at"):
        attnpass.distil(net, planned(net), batches(), steps=8, checkpoint=file)


class Scripted:
    """An objective whose losses on the selection are given."""

    name, share, start, dtypes = "local", 1.0, 1.0, {torch.float32}

    def __init__(self, looks: list[float], late: bool = False) -> None:
        self.value = nn.Parameter(torch.zeros(2, 2))
        self.units = {("", "a"): Unit([(self.value, 1.0, late)])}
        self.looks, self.seen = looks, []

    def losses(self, batch):
        if torch.is_grad_enabled():
            yield ("", "a"), self.start + self.value.sum() * 100
        else:
            self.seen.append(self.value.detach().clone())
            yield ("", "a"), torch.tensor(self.looks[len(self.seen) - 1])


def trained(objective: Scripted, selection=None, share: float = 1.0, **options) -> Trainer:
    trainer = Trainer(objective, DistilOptions(**options), share, Checkpoint(None, ""))
    trainer.run(batches(), batches(1) if selection is None else selection, None)
    return trainer


def test_a_stage_that_no_longer_improves_ends_and_its_best_is_kept():
    # while the rate is high, in the first half, nothing ends a stage
    looks = [9.0, 3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 0.5]
    objective = Scripted(looks)
    stage = trained(objective, steps=100).done
    assert stage.steps == 80 and stage.kept == {"|a": 20} and stage.best == {"|a": 1.0}
    assert [loss for _, loss in stage.looks] == looks[:9]
    assert torch.equal(objective.value.detach(), objective.seen[2])
    assert not torch.equal(objective.seen[2], objective.seen[8])


def test_a_stage_goes_on_while_it_comes_back_from_a_high_rate():
    looks = [1.0, *(9.0 - i / 2 for i in range(10))]
    stage = trained(Scripted(looks), steps=100).done
    assert stage.steps == 100 and stage.kept == {"|a": 0}


@pytest.mark.parametrize(
    ("wanted", "native", "dtype", "narrow"),
    [
        (True, False, torch.float32, True),
        (False, True, torch.float32, False),
        (None, True, torch.float32, True),
        (None, True, torch.float16, False),
    ],
)
def test_products_are_narrow_where_asked_for_or_native(wanted, native, dtype, narrow, monkeypatch):
    monkeypatch.setattr("attnpass.environment.narrow", lambda device: native)
    seen = []

    class Products(Scripted):
        def losses(self, batch):
            seen.append((self.value @ self.value).dtype)
            yield from super().losses(batch)

    objective = Products([1.0 / (i + 1) for i in range(20)])
    objective.dtypes = {dtype}
    trained(objective, steps=10, autocast=wanted)
    assert len(seen) == 21 and set(seen) == {torch.bfloat16 if narrow else torch.float32}
    assert objective.value.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


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


def test_what_it_starts_from_may_be_the_best():
    objective = Scripted([0.5] + [1.0] * 20)
    stage = trained(objective, steps=20).done
    assert stage.kept == {"|a": 0} and stage.best == {"|a": 0.5}
    assert not objective.value.detach().any()


@pytest.mark.parametrize("late", [False, True])
def test_rates_rise_and_fall_and_deltas_begin_later(late):
    objective = Scripted([], late)
    rates = []
    trainer = Trainer(objective, DistilOptions(steps=100), 1.0, Checkpoint(None, ""))
    told = lambda *_: rates.append(trainer.optimiser.param_groups[0]["lr"])  # noqa: E731
    trainer.run(batches(), [], told)
    start = 15 if late else 0
    assert rates[:start] == [0.0] * start
    assert rates[start] == pytest.approx(0.05 * (0.2 if start == 0 else 0.2 * 0.938), rel=0.01)
    assert max(rates) == pytest.approx(0.05 * (0.994 if start == 0 else 0.905), rel=0.01)
    assert rates[-1] == 0.0 and rates[49] == pytest.approx(0.025)


def test_gradients_are_clipped_and_large_weights_decay():
    trainer = trained(Scripted([]), selection=[], steps=1)
    assert trainer.parameters[0].grad.norm() == pytest.approx(1.0)
    group = trainer.optimiser.param_groups[0]
    assert group["weight_decay"] == 0.01
    vector = Scripted([])
    vector.value = nn.Parameter(torch.zeros(3))
    vector.units = {("", "a"): Unit([(vector.value, 1.0, False)])}
    group = trained(vector, selection=[], steps=1).optimiser.param_groups[0]
    assert group["weight_decay"] == 0.0


def test_looks_take_a_small_share_of_a_budget_of_time(monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr("attnpass.recover.trainer.time.monotonic", lambda: float(next(clock)))
    seen = []
    for budget in (1000.0, 100.0):
        objective = Scripted([1.0 / (i + 1) for i in range(10_000)])
        stage = trained(objective, selection=batches(8), budget=budget).done
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
        ({"budget": float("inf")}, "expected a budget of seconds > 0"),
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
        attnpass.distil(**{"model": net, "plan": Plan({}), "inputs": batches(), **given})


def test_no_inputs_and_values_that_are_not_finite():
    net = model()
    with pytest.raises(OptionError, match="expected at least one batch of inputs to distil on"):
        attnpass.distil(net, planned(net), [])
    plan = planned(net)
    with torch.no_grad():
        plan.values["blocks.1.attn"]["gain"].fill_(float("nan"))
    with pytest.raises(MeasureError, match="expected a finite loss, got nan at step 0"):
        attnpass.distil(net, plan, batches(), steps=4)


def test_a_budget_of_time_is_kept_and_a_slow_first_step_does_not_spoil_the_rates(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("attnpass.recover.trainer.time.monotonic", lambda: now[0])
    rates = []

    class Slow(Scripted):
        def losses(self, batch):
            now[0] += 1.0 if rates else 20.0
            yield from super().losses(batch)

    trainer = Trainer(Slow([]), DistilOptions(budget=240.0), 0.5, Checkpoint(None, ""))
    told = lambda *_: rates.append(trainer.optimiser.param_groups[0]["lr"])  # noqa: E731
    stage = trainer.run(batches(), [], told)
    assert stage.seconds == 120.0 and stage.total == stage.steps == 101
    assert rates[0] == 0.0 and rates[2] < rates[3] < rates[4] < rates[5]
    assert max(rates) < 0.05 and rates[-1] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_layers_that_share_a_graph_learn_each_for_itself():
    net = Broken().eval()
    net.net = model()
    plan = Plan.create(net, data(), form="sigmoid")
    stages = attnpass.distil(net, plan, batches(), steps=12, local=0.5, outputs="features")
    assert [s.losses[-1] < s.losses[0] for s in stages] == [True, True]
    assert sorted(plan.deltas) == [f"net.blocks.{i}.attn" for i in range(3)]


class Padded(nn.Module):
    """Two blocks over ``[B, T, D]`` with a padding mask ``[B, T]``, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.MultiheadAttention(8, 2, batch_first=True) for _ in "ab")
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        for attn in (self.first, self.second):
            x = x + attn(x, x, x, key_padding_mask=~keep, need_weights=False)[0]
        return self.last(x)


@pytest.mark.parametrize("form", ["sigmoid", "hydra", "skipat"])
@pytest.mark.parametrize("outputs", ["local", "logits", "features"])
def test_padding_has_no_part_in_the_losses(form, outputs):
    torch.manual_seed(0)
    net = Padded().train()
    x = torch.randn(2, 6, 8)
    keep = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    plan = Plan.create(net, x, keep, form=form, form_options=FORMS[form])
    assert form in {e.form for e in plan.sites.values()}
    capture = Capture(net).trace(x, keep)
    if outputs == "local":
        loss = Local(capture, {"": plan})
    else:
        loss = Global(net, capture, plan, outputs, ())
    first = judge(loss, (x, keep))
    other = x.clone()
    other[1, 3:] = 7.0
    assert judge(loss, (other, keep)) == pytest.approx(first, rel=1e-4)
    other[1, :3] = 7.0
    assert judge(loss, (other, keep)) != pytest.approx(first, rel=1e-2)


def test_padding_is_left_out_of_sequences_that_come_first():
    keep = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    keep[0, ..., 3:] = False
    got, want = (torch.randn(2, 5, 8) for _ in range(2))
    rows = [objectives._padding([keep], x) for x in (got, got.transpose(0, 1))]
    assert rows[1].shape == (5, 2, 1) and torch.equal(rows[1].transpose(0, 1), rows[0])
    by_hand = got - want
    by_hand[0, 3:] = 0
    expected = by_hand.square().sum() / (want.square().sum() - want[0, 3:].square().sum())
    first = objectives.relative(got.transpose(0, 1), want.transpose(0, 1), rows[1])
    torch.testing.assert_close(first, expected)
    other = keep.clone()
    other[1, ..., 4] = False
    assert objectives._padding([keep, other], got) is None, "the masks differ"


def test_features_are_paired_by_the_weights_that_read_them():
    """With gradients Dynamo names the nodes of this encoder in another way than without."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    net, x = (
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(),
        torch.randn(2, 6, 16),
    )
    plan, capture = Plan.create(net, x, form="sigmoid"), Capture(net).trace(x)
    objective = Global(net, capture, plan, "features", ())
    with torch.no_grad():
        _, features, _ = objectives._answers(capture, (x,))
    _, own, _ = objectives._answers(objective.student, (x,))
    assert features.keys() == own.keys() and len(own) == 4, "two linear layers in each block"
    hidden = dict[str, Tensor]()
    for i, block in enumerate(net.layers):
        for name in ("linear1", "linear2"):
            at = f"layers.{i}.{name}.weight 1"
            part = getattr(block, name)
            part.register_forward_pre_hook(lambda _, args, at=at: hidden.update({at: args[0]}))
    net(x.requires_grad_())  # with gradients: else a fused kernel runs, and no hook
    assert hidden.keys() == features.keys()
    for at, value in hidden.items():
        torch.testing.assert_close(features[at], value)


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


def test_dropout_goes_on_where_it_stopped(tmp_path):
    class Stop(Exception):
        pass

    def stop(stage: str, step: int, total: int, loss: float) -> None:
        if step == 3:
            raise Stop

    def start() -> tuple[nn.Module, Plan]:
        net = model()
        net.head = nn.Sequential(nn.Dropout(0.5), net.head)
        plan = planned(net)
        return net.train(), plan

    net, whole = start()
    attnpass.distil(net, whole, batches(), steps=6)
    given = {"steps": 6, "checkpoint": tmp_path / "state"}
    net, plan = start()
    with pytest.raises(Stop):
        attnpass.distil(net, plan, batches(), progress=stop, **given)
    net, plan = start()
    attnpass.distil(net, plan, batches(), **given)
    assert plan.hash == whole.hash


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


def test_a_forward_without_gradients_is_one_line():
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    net = Encoder().eval()
    plan = Plan.create(net, data(), form="sigmoid")
    with pytest.raises(MeasureError, match=r"is its forward under torch.no_grad\(\)"):
        attnpass.distil(net, plan, batches(), steps=4, local=0)


def test_a_model_without_floating_outputs_is_one_line():
    class Classes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).argmax(-1)

    net = Classes().eval()
    plan = Plan.create(net, data(), form="sigmoid")
    with pytest.raises(OptionError, match="expected a model that returns a floating tensor"):
        attnpass.distil(net, plan, batches(), steps=4, local=0)


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


class Repeated(nn.Module):
    """One attention, called three times, a graph each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block = model().blocks[0]

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            torch._dynamo.graph_break()
            x = self.block(x) * 1.5
        return x


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_layer_that_runs_often_is_judged_by_all_its_runs():
    net = Repeated().eval()
    x = torch.randn(2, 9, 16)
    plan = Plan.create(net, x, form="sigmoid")
    local = Local(Capture(net).trace(x), {"": plan})
    losses = [float(loss.detach()) for _, loss in local.losses((x,))]
    assert len(losses) == 3 and len(set(losses)) == 3
    (mean,) = judge(local, (x,)).values()
    assert mean == pytest.approx(sum(losses) / 3)


@pytest.mark.parametrize(("start", "factor"), [(1e-9, 0.01), (0.3, 0.3), (1.5, 1.5), (9.0, 2.0)])
def test_rates_follow_the_loss_at_the_start(start, factor):
    objective = Scripted([])
    objective.start, objective.share = start, 0.5
    trainer = trained(objective, selection=[], steps=4)
    assert trainer.optimiser.param_groups[0]["size"] == pytest.approx(factor)
    assert trainer.rate == 0.5 * DistilOptions.rate and Global.share < Local.share == 1.0


def test_wider_weights_learn_more_slowly():
    names = ["blocks.0.attn"]
    sizes = []
    for width in (64, 256):
        weights = {"w": torch.full((8, width), 0.5)}
        plan = Plan({names[0]: Entry("sigmoid", {}, "", "")})
        plan.deltas = {names[0]: {"w": Delta(weights["w"].shape, None)}}
        sizes.append(objectives._unit(plan, names, weights).values[0][1])
    assert sizes == pytest.approx([0.5, 0.25])


def test_stages_share_the_steps_exactly():
    net = model()
    stages = attnpass.distil(net, planned(net), batches(), steps=3, local=0.5)
    assert [(s.name, s.steps) for s in stages] == [("local", 2), ("global", 1)]
    stages = attnpass.distil(net, planned(net), batches(), steps=1, local=0.4)
    assert [(s.name, s.steps) for s in stages] == [("global", 1)], (
        "no step is left to the local one"
    )


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


def test_an_early_interruption_loses_no_more_than_what_runs(tmp_path, monkeypatch):
    net, file = model(), tmp_path / "state"
    step, calls = Trainer._step, []

    def interrupted(self, inputs):
        calls.append(self.done.steps)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(self, inputs)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        attnpass.distil(net, planned(net), batches(), steps=6, checkpoint=file)
    attnpass.distil(net, planned(net), batches(), steps=6, checkpoint=file)
    assert calls == [0, 1, 2, 1, 2, 3, 4, 5], "the first step was kept"


class _Half:
    """A loss of a float16 product, times ``factor``."""

    name, share, dtypes = "global", 1.0, frozenset({torch.float16})

    def __init__(self, factor: float) -> None:
        self.factor, self.weight = factor, nn.Parameter(torch.ones(4))
        self.units = {("", ""): Unit([(self.weight, 1.0, False)])}

    def losses(self, batch):
        (x,) = batch
        yield ("", ""), (self.weight.half() * x).float().sum() * self.factor


@pytest.mark.parametrize("factor", [1e-9, 0.5, 1e3])
def test_gradients_of_a_float16_model_neither_vanish_nor_overflow(factor):
    objective = _Half(factor)
    trainer = Trainer(objective, DistilOptions(steps=40), 1.0, Checkpoint(None, ""))
    for _ in range(40):
        trainer._step([(torch.ones(4, dtype=torch.float16),)])
    assert torch.isfinite(objective.weight).all() and bool((objective.weight < 1).all())
    assert (trainer.scale < SCALE) == (factor > 1)


def test_the_scale_of_a_float16_model_goes_on(tmp_path):
    file = tmp_path / "state"
    first = Trainer(_Half(1e3), DistilOptions(steps=40), 1.0, Checkpoint(file, "it"))
    for _ in range(20):
        first._step([(torch.ones(4, dtype=torch.float16),)])
    first._save()
    second = Trainer(_Half(1e3), DistilOptions(steps=40), 1.0, Checkpoint(file, "it"))
    assert second._resume() and second.scale == first.scale < SCALE


def test_features_of_other_shapes_are_no_pair(monkeypatch):
    """What a router sends elsewhere has other rows in the converted model."""
    net = random_model()
    x, answers = torch.rand(2, 1, 32, 32), objectives._answers

    def routed(capture, batch):
        out, features, masks = answers(capture, batch)
        if capture is objective.student:
            odd = sorted(features)[0]
            features[odd] = features[odd][:1]
        return out, features, masks

    plan = Plan.create(net, x, form="sigmoid")
    capture = Capture(net).trace(x)
    objective = Global(net, capture, plan, "logits", ())
    whole = judge(objective, (x,))
    monkeypatch.setattr(objectives, "_answers", routed)
    fewer = judge(objective, (x,))
    assert 0 < fewer[("", "")] != whole[("", "")]


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
    with pytest.raises(OptionError, match="expected learns to be true or false, got 3"):
        Plan.create(net, x, form="softmax", form_options={"learns": 3})
