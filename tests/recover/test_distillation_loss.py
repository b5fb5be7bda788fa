"""The loss as a module: in a loop of one's own, in several processes, in transformers' Trainer."""

from __future__ import annotations

import copy
import re
from datetime import timedelta

import pytest
import torch
from pages import page
from recovery_problems import batches, data, model, planned, random_model
from torch import nn

import attnpass
from attnpass import Capture, DistillationLoss, Plan
from attnpass.batch import Batch
from attnpass.errors import OptionError
from attnpass.recover import GlobalLoss, global_loss
from attnpass.recover.answers import Answer, answer

SITE = "blocks.0.attn"


def loss_of(net: nn.Module, plan: Plan, outputs: str = "logits") -> float:
    """The global loss of a plan on the first batch, by another capture."""
    capture = Capture(net).trace(data())
    ((_, loss),) = GlobalLoss(net, capture, plan, outputs, ()).losses(batches()[0])
    return float(loss.detach())


def test_it_is_the_loss_of_the_global_stage():
    net, (x,) = model(), batches()[0]
    plan = planned(net)
    loss = DistillationLoss(net, plan, (x,), outputs="features", rank=2)
    ranks = {None if d.left is None else d.left.shape[1] for d in plan.deltas[SITE].values()}
    assert ranks == {None, 2}, "biases have whole deltas"
    want = loss_of(net, plan, "features")
    assert float(loss(x).detach()) == want > 0
    assert float(loss(images=x).detach()) == want


LOOP, TRAINER = re.findall(r"```python\n(.*?)```", page("docs/recovery.md"), re.S)


def test_the_loop_of_the_documentation_teaches_the_plan_and_leaves_the_model(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    net = model()
    plan = planned(net)
    plan.measured = {"old": 1}
    before, first = copy.deepcopy(net.state_dict()), loss_of(net, plan)
    names = {"attnpass": attnpass, "torch": torch, "model": net, "plan": plan}
    exec(compile(LOOP, "recovery.md", "exec"), names | {"batches": batches() * 4})
    assert plan.measured == {}
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
    assert Plan.load("plan.json").hash == plan.hash
    assert loss_of(net, plan) < 0.8 * first, "a model that is rewritten anew has what was learnt"


def test_groups_have_the_rates_of_distil():
    net = model()
    plan = planned(net)
    loss = DistillationLoss(net, plan, batches()[0])
    groups = loss.groups(rate=0.1)
    assert len(groups) == len(list(plan.parameters()))
    by_parameter = {id(g["params"][0]): g["lr"] for g in groups}
    for path, delta in plan.deltas["blocks.0.attn"].items():
        weight = net.get_parameter(path)
        size = float(weight.detach().square().mean().sqrt())
        assert by_parameter[id(delta.full)] == pytest.approx(0.1 * 0.5 * size)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"steps": 3}, "expected options of rank, softmax, outputs, seed, recompute; got steps"),
        ({"rank": -1}, "expected a rank >= 0"),
    ],
)
def test_options_are_checked(change, expected):
    net = random_model()
    with pytest.raises(OptionError, match=expected):
        DistillationLoss(net, Plan.create(net, data(), form="sigmoid"), (data(),), **change)


def test_what_cannot_learn_is_one_line():
    net = random_model()
    plan = Plan.create(net, data(), form="softmax")
    with pytest.raises(OptionError, match="something can learn"):
        DistillationLoss(net, plan, (data(),))


def test_arguments_of_both_kinds_and_exchanged_parameters_are_refused():
    net = model()
    loss = DistillationLoss(net, planned(net), (data(),))
    with pytest.raises(OptionError, match="all positional or all named"):
        loss(data(), images=data())
    loss.learning[0] = nn.Parameter(loss.learning[0].detach().clone())
    with pytest.raises(OptionError, match="DistributedDataParallel"):
        loss(data())


def test_the_model_is_frozen_only_while_the_student_runs(monkeypatch):
    net = model()
    first = next(net.parameters())
    first.requires_grad_(False)
    loss = DistillationLoss(net, planned(net), (data(),))
    seen = []

    def spied(capture: Capture, batch: Batch, **_: bool) -> Answer:
        seen.append(any(p.requires_grad for p in net.parameters()))
        return answer(capture, batch)

    monkeypatch.setattr(global_loss, "answer", spied)
    loss(data())
    learns = [p.requires_grad for p in net.parameters()]
    assert seen == [True, False] and not learns[0] and all(learns[1:])


def _rank(rank: int, world: int, out: str) -> None:
    torch.set_num_threads(1)
    where, patience = f"file://{out}/store", timedelta(seconds=120)
    torch.distributed.init_process_group(
        "gloo", where, rank=rank, world_size=world, timeout=patience
    )
    net = model()
    plan = planned(net)
    loss = nn.parallel.DistributedDataParallel(DistillationLoss(net, plan, batches()[0]))
    loss(*batches()[rank]).backward()
    torch.save([p.grad for p in plan.parameters()], f"{out}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_several_processes_take_the_mean_of_their_gradients(tmp_path):
    torch.multiprocessing.spawn(_rank, (2, str(tmp_path)), nprocs=2)
    net = model()
    plan = planned(net)
    loss = DistillationLoss(net, plan, batches()[0])
    for i in range(2):
        (loss(*batches()[i]) / 2).backward()
    for rank in range(2):
        got = torch.load(tmp_path / f"{rank}.pt")
        for p, grad in zip(plan.parameters(), got, strict=True):
            torch.testing.assert_close(grad, p.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_the_trainer_of_transformers_teaches_a_plan(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = BertConfig(vocab_size=99, num_attention_heads=2, **size)
    net = BertForSequenceClassification(config).eval()
    texts = [{"input_ids": torch.randint(99, (16,))} for _ in range(64)]
    example = {"input_ids": torch.stack([t["input_ids"] for t in texts[:4]])}
    plan = Plan.create(net, **example, form="hydra")
    attnpass.calibrate(net, plan, [example])

    names: dict = {"Trainer": Trainer}
    exec(compile(TRAINER, "recovery.md", "exec"), names)
    loss = DistillationLoss(net, plan, example)
    first = float(loss(**example).detach())
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=30,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        report_to=[],
        save_strategy="no",
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=True,
    )
    optimiser = torch.optim.AdamW(loss.groups())
    schedule = torch.optim.lr_scheduler.ConstantLR(optimiser, 1.0)
    trainer = names["DistilTrainer"](
        model=loss, args=arguments, train_dataset=texts, optimizers=(optimiser, schedule)
    )
    trainer.train()
    assert float(loss(**example).detach()) < 0.5 * first
