"""Weights that are gathered for a call and freed after it: deltas are added to what a call has."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from compiled.test_added import with_deltas
from compiling import BOUND, build, captured, compiled, data, error
from torch.distributed.fsdp import fully_shard


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
