"""The plan's values at a call are those of the plan at that call, or the call raises."""

from __future__ import annotations

import copy

import pytest
import torch
from compiling import BOUND, INNER, build, captured, compiled, data, error, make_plan
from provers import mutated, numbered
from torch import nn

from attnpass.compiled import added
from attnpass.errors import PlanError
from attnpass.plan import Delta, Plan


def with_deltas(model, x, rank=None):
    """A plan with a delta on every query projection."""
    plan = make_plan(model, x)
    generator = torch.Generator().manual_seed(7)
    for i, _ in enumerate(model.blocks):
        delta = Delta(model.blocks[i].attn.q.weight.shape, rank)
        with torch.no_grad():
            for p in delta.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
        plan.deltas[f"blocks.{i}.attn"] = {f"blocks.{i}.attn.q.weight": delta}
    return plan


def in_place(model, plan):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.3)


def past_autograd(model, plan):
    for p in model.parameters():
        p.data.mul_(1.3)


def other_storage(model, plan):
    for p in model.parameters():
        p.data = p.data * 1.3


def set_storage(model, plan):
    with torch.no_grad():
        for p in model.parameters():
            p.set_((p * 1.3).contiguous())


def through_numpy(model, plan):
    for p in model.parameters():
        p.detach().numpy()[...] *= 1.3


def to_half_and_back(model, plan):
    model.half().float()


def assigned(model, plan):
    state = {k: v * 1.3 for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def new_parameters(model, plan):
    for block in model.blocks:
        block.attn.q.weight = nn.Parameter(block.attn.q.weight.detach() * 1.3)


def averaged(model, plan):
    torch._foreach_lerp_(
        [p.data for p in model.parameters()], [torch.ones_like(p) for p in model.parameters()], 0.5
    )


def fused(name):
    def step(model, plan):
        weights = [*model.parameters(), *plan.parameters()]
        for p in weights:
            p.grad = torch.ones_like(p)
        getattr(torch.optim, name)(weights, lr=0.05, fused=True).step()

    return step


def other_delta(model, plan):
    for deltas in plan.deltas.values():
        for path, delta in deltas.items():
            deltas[path] = Delta.of({k: v.detach() * -2 for k, v in delta.named_parameters()})


def other_form_values(model, plan):
    for values in plan.values.values():
        for name, value in values.items():
            values[name] = nn.Parameter(value.detach() + 0.3)


def delta_past_autograd(model, plan):
    for p in plan.parameters():
        p.data = p.data * 1.5


def in_inference_mode(model, plan):
    with torch.inference_mode():
        for p in (*model.parameters(), *plan.parameters()):
            p.mul_(1.3)


WAYS = {
    f.__name__: f
    for f in (
        *(in_place, past_autograd, other_storage, set_storage, through_numpy, to_half_and_back),
        *(assigned, new_parameters, averaged, other_delta),
        *(other_form_values, delta_past_autograd, in_inference_mode),
    )
} | {f"fused {name}": fused(name) for name in ("SGD", "Adam", "AdamW", "Adagrad")}
"""Ways in which a weight, a delta or a form's parameter changes after the model was compiled."""


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("way", WAYS)
def test_a_change_is_seen_however_it_is_made(way, inner):
    model, x = build(1), data()
    plan = with_deltas(model, x, rank=2 if way == "averaged" else None)
    torch._dynamo.reset()  # torch swaps no parameter that a kept graph refers to
    run = compiled(model, inner, plan=plan)
    with torch.no_grad():
        before = run(x).clone()
    WAYS[way](model, plan)
    with torch.no_grad():
        got = run(x)
        torch._dynamo.reset()
        want = captured(model, plan, x)(x)
    assert error(got, want) <= BOUND and error(got, before) > 1e-4


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("name", ["weight_norm", "orthogonal", "spectral_norm"])
def test_a_delta_on_what_a_parametrized_weight_is_made_of(name, inner):
    """The delta is added to the original, before the parametrization; so is one in a copy."""
    torch._dynamo.reset()
    model, x = build(2), data()
    q = model.blocks[0].attn.q
    getattr(nn.utils.parametrizations, name)(q)
    path = [n for n, p in model.named_parameters() if "parametrizations" in n and p.dim() == 2][-1]
    plan, original = make_plan(model, x), model.get_parameter(path)
    delta = Delta(original.shape, None)
    with torch.no_grad():
        for p in delta.parameters():
            p.copy_(torch.randn(p.shape) * 0.2)
    plan.deltas["blocks.0.attn"] = {path: delta}
    run = compiled(model, plan=plan, inner=inner, strict=True)
    with torch.no_grad():
        for factor in (1.0, 1.1):
            original.mul_(factor)
            other, plain = copy.deepcopy(model), plan.copy()
            other.get_parameter(path).copy_(delta.add(original))
            plain.deltas.clear()
            got = run(x)
            assert error(got, captured(other, plain, x)(x)) <= BOUND
            assert error(got, captured(model, plain, x)(x)) > 100 * BOUND


def test_condition_1_a_parameter_that_was_put_in_place_of_another_is_used():
    values = {"a": nn.Parameter(torch.ones(2))}
    held = added.Values([lambda: values["a"]], trained=True)
    values["a"] = nn.Parameter(torch.zeros(2))
    assert held()[0] is values["a"]


@pytest.mark.parametrize(
    "other", [torch.ones(3), torch.ones(2, dtype=torch.float64), torch.ones(2, device="meta")]
)
def test_condition_2_another_kind_raises(other):
    values = [nn.Parameter(torch.ones(2))]
    held = added.Values([lambda: values[0]], trained=True)
    values[0] = nn.Parameter(other)
    with pytest.raises(PlanError, match="compile the model again"):
        held()
    with mutated("compiled.added", "_kind(x) != kind", "False"):
        assert held() == values


def unfrozen(inner):
    """How many plan parameters get a gradient after they were unfrozen."""
    torch._dynamo.reset()
    model, x = build(1).train(), data()
    plan = make_plan(model, x).frozen()
    run = compiled(model, inner, plan=plan)
    run(x).square().sum().backward()
    for p in plan.parameters():
        p.requires_grad_(True)
    run(x).square().sum().backward()
    return sum(p.grad is not None for p in plan.parameters())


@pytest.mark.filterwarnings("ignore")
def test_condition_3_unfrozen_parameters_get_gradients_or_the_call_raises():
    assert unfrozen("eager") > 0
    with pytest.raises(PlanError, match="stay frozen"):
        unfrozen("aot_eager")
    line = "gradients and x.requires_grad and not trainable"
    with mutated("compiled.added", line, "False"):
        assert unfrozen("aot_eager") == 0


def test_condition_4_held_sums_are_kept_until_they_are_released():
    torch._dynamo.reset()
    model, x = build(1), data()
    plan = with_deltas(model, x).hold()
    run = compiled(model, plan=plan)
    with torch.no_grad():
        before = run(x).clone()
        weight = model.blocks[0].attn.q.weight
        weight.mul_(2.0)
        assert error(run(x), before) == 0.0, "a write is not seen"
        plan.release()
        released = run(x).clone()
        assert error(released, before) > 1e-4
        weight.mul_(2.0)
        plan.hold()
        assert error(run(x), released) > 1e-4, "held anew, from now on"
        torch._dynamo.reset()
        assert error(run(x), captured(model, plan, x)(x)) <= BOUND


@pytest.mark.parametrize("first, then", [("hold", "release"), ("release", "hold")])
def test_a_layer_that_comes_after_sums_were_held_or_released(first, then):
    """The second block comes through the first one's graph, which was compiled before."""
    torch._dynamo.reset()
    model, x = build(2), data()
    plan = with_deltas(model, x)
    want = captured(model, plan, x)(x)
    getattr(plan, first)()
    for block in model.blocks:
        block.compile(backend="attnpass", options={"inner": "eager", "plan": plan})
    with torch.no_grad():
        model.blocks[0](x)
        getattr(plan, then)()
        assert error(model(x), want) <= BOUND


def test_a_held_sum_is_that_of_its_own_model(tmp_path):
    """A plan from a file, of weights that have changed, knows a model by its names alone."""
    torch._dynamo.reset()
    model, x = build(1), data()
    with_deltas(model, x).save(tmp_path / "plan.json")
    plan = Plan.load(tmp_path / "plan.json").hold()
    in_place(model, plan)
    other = build(1)
    past_autograd(other, plan)
    past_autograd(other, plan)
    for one in (model, other, model):
        run = compiled(one, plan=plan)
        with torch.no_grad():
            assert error(run(x), captured(one, Plan.load(tmp_path / "plan.json"), x)(x)) <= BOUND


def test_held_sums_take_no_gradients():
    torch._dynamo.reset()
    model, x = build(1), data()
    run = compiled(model, plan=with_deltas(model, x).hold())
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=r"plan\.release"):
        run(x)


def test_a_delta_that_is_gone_raises():
    torch._dynamo.reset()
    model, x = build(1), data()
    plan = with_deltas(model, x)
    run = compiled(model, plan=plan)
    with torch.no_grad():
        run(x)
        plan.deltas.clear()
        with pytest.raises(PlanError, match="compile the model again"):
            run(x)


def test_every_condition_has_a_test():
    stated = numbered(added.__doc__)
    assert all(f"test_condition_{n}_" in " ".join(globals()) for n in stated) and len(stated) == 4
