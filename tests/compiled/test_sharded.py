"""Training on several devices: gathered weights (FSDP) and graphs that torch splits (DDP)."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from compiled.test_added import with_deltas
from compiling import BOUND, INNER, build, captured, compiled, data, error, make_plan
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import attnpass
from attnpass.errors import PlanError


@pytest.fixture
def mesh():
    """A mesh of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_sharded_blocks_run_with_their_deltas(mesh, warnings_):
    model, x = build(2), data()
    plan = with_deltas(model, x, rank=2)
    want = captured(model, plan, x)(x).detach()
    torch._dynamo.reset()
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh)
    run = compiled(model, plan=plan, strict=True)
    for _ in range(2):
        with torch.no_grad():
            assert error(run(x), want) <= BOUND
    before = model.blocks[1].attn.q.weight.full_tensor().clone()
    run(x).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    assert error(model.blocks[1].attn.q.weight.full_tensor(), before) > 1e-4
    with torch.no_grad():
        assert error(run(x), want) > 1e-3
    assert not [w for w in warnings_() if "trained on other weights" in w]


def parallel(model, monkeypatch, size):
    """The model under DDP, its graph split wherever ``size`` bytes of weights are full."""
    monkeypatch.setattr(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 1)
    return DistributedDataParallel(model, bucket_cap_mb=size / 2**20)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("inner", INNER)
def test_parts_of_a_split_graph_have_the_forms_of_their_layers(
    inner, mesh, warnings_, monkeypatch
):
    """Torch compiles the parts with stand-ins for the parameters; the first call brings them."""
    model, x = build(3).train(), data()
    plan = make_plan(model, x, sites=["blocks.1.*"])
    capture = captured(model, plan, x)
    want = capture(x).detach()
    capture(x).square().sum().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch._dynamo.reset()
    attnpass.reset_report()
    size = sum(grad.nbytes for n, grad in grads.items() if n.startswith("blocks.1."))
    whole = parallel(model, monkeypatch, size)
    run = compiled(whole, inner, plan=plan, strict=True)
    for _ in range(2):
        out = run(x)
        assert error(out, want) <= BOUND
    out.square().sum().backward()
    assert attnpass.compiled_report().graphs == 3, "one part for each block"
    weights = dict(model.named_parameters())
    assert all(error(weights[n].grad, grad) <= 10 * BOUND for n, grad in grads.items())
    assert attnpass.compiled_report().rewritten == {"blocks.1.attn": "sigmoid"}
    assert warnings_() == []


@pytest.mark.filterwarnings("ignore")
def test_a_split_within_an_attention_is_refused(mesh, monkeypatch):
    model, x = build(2).train(), data()
    run = compiled(parallel(model, monkeypatch, 1), plan=make_plan(model, x), strict=True)
    with pytest.raises(Exception, match="stays softmax") as raised:
        run(x)
    assert isinstance(getattr(raised.value, "inner_exception", raised.value), PlanError)
