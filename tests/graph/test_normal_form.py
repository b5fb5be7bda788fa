"""Dynamo's graph re-traced: regions that are plain calls are opened, metadata is carried over."""

import functools

import pytest
import torch
import torch.nn.functional as F
from nested import (
    BOUND,
    Attention,
    Nested,
    autocast,
    data,
    error,
    made,
    one_backend,
    plain,
    recomputed,
    results,
)
from torch import nn

import attnpass
from attnpass.tuner.digits import DigitsViT


@functools.cache
def formed_outside(inner):
    """Output and gradients with form sigmoid, of the same weights and data without any region."""
    torch._dynamo.reset()
    free = made(plain)
    x = data(free)
    options = {"inner": inner, "form": "sigmoid"}
    return results(free, torch.compile(free, backend="attnpass", options=options), x)


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
@pytest.mark.parametrize(
    ("how", "cls"),
    [(recomputed, Attention), (plain, Nested), (one_backend, Attention)],
    ids=["checkpoint", "nested-region", "sdpa-kernel"],
)
def test_round_trip_and_a_form_inside(how, cls, inner):
    model = made(how, cls)
    x = data(model)
    want = results(model, model, x)
    options = {"inner": inner, "form": "softmax"}
    assert (
        error(results(model, torch.compile(model, backend="attnpass", options=options), x), want)
        < BOUND
    )
    formed = formed_outside(inner)
    torch._dynamo.reset()
    options["form"] = "sigmoid"
    attnpass.reset_report()
    got = results(model, torch.compile(model, backend="attnpass", options=options), x)
    assert error(got, formed) < BOUND
    assert error(got, want) > 1e-3
    report = attnpass.compiled_report()
    assert (len(report.sites), len(report.rewritten), report.declined) == (3, 3, [])


def test_autocast_stays_in_force():
    """Inside the region operands are bf16, outside they are not: the same with and without."""
    model = made(autocast)
    x = data(model)
    want = results(model, model, x)
    run = torch.compile(
        model, backend="attnpass", options={"inner": "aot_eager", "form": "softmax"}
    )
    got = results(model, run, x)
    assert got[0].dtype == want[0].dtype
    assert error(got, want) < 3e-2  # bf16 inside


def saved_by(call, x):
    """Bytes that the forward pass keeps for the backward pass."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call(x)
    return sum(kept.values())


def _partitioned(gm, inputs):
    """AOTAutograd with the partitioner that honours recomputation tags, no code generation."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.compilers import nop
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    compiler = aot_autograd(
        fw_compiler=nop, bw_compiler=nop, partition_fn=min_cut_rematerialization_partition
    )
    return compiler(gm, inputs)


@functools.cache
def kept_without_the_pass():
    """Bytes that the checkpointed model keeps, and the model without checkpoints."""
    x = torch.randn(2, 64, 16, dtype=torch.float64, requires_grad=True)
    checkpointed = saved_by(torch.compile(made(recomputed), backend=_partitioned), x)
    torch._dynamo.reset()
    everything = saved_by(torch.compile(made(plain), backend="aot_eager"), x)
    torch._dynamo.reset()
    return checkpointed, everything


@pytest.mark.slow
@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_checkpointed_attention_is_still_recomputed(form):
    """The rewritten graph keeps no more for the backward pass than the checkpointed model.

    Beside the tests of the normal form: AOTAutograd's own partitioner honours the tags.
    """
    checkpointed, everything = kept_without_the_pass()
    model = made(recomputed)
    x = torch.randn(2, 64, 16, dtype=torch.float64, requires_grad=True)
    options = {"inner": _partitioned, "form": form}
    compiled = torch.compile(model, backend="attnpass", options=options)
    got = saved_by(compiled, x)
    assert got <= checkpointed * 1.01
    assert got < everything / 2


def aot_view(model, x, **options):
    """What AOTAutograd learns from the graph it is handed: sources, static inputs, the inputs."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch._aot_autograd import frontend_utils
    from torch._functorch.compilers import nop

    seen = {}
    real = frontend_utils._try_get_metadata_from_dynamo

    def spy(gm, *rest):
        seen["sources"], seen["static"] = real(gm, *rest)
        return seen["sources"], seen["static"]

    def inner(gm, inputs):
        seen["inputs"] = list(inputs)
        seen["ids"] = gm.meta.get("dynamo_compile_id")
        return aot_autograd(fw_compiler=nop, bw_compiler=nop)(gm, inputs)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        from torch._functorch import aot_autograd as module

        patch.setattr(module, "_try_get_metadata_from_dynamo", spy)
        if options:
            torch.compile(model, backend="attnpass", options={**options, "inner": inner})(x)
        else:
            torch.compile(model, backend=inner)(x)
    return seen


def test_static_inputs_and_sources_survive_the_retrace():
    """Without them CUDA graphs copy every weight, and no de-duplication guard has a source."""
    model, x = DigitsViT(dim=16, depth=2, heads=2).eval(), torch.rand(2, 1, 32, 32)
    plain = aot_view(model, x)
    torch._dynamo.reset()
    plan = attnpass.Plan.create(model, x, form="sigmoid")
    torch._dynamo.reset()
    ours = aot_view(model, x, plan=plan)
    own = len(list(plan.parameters()))
    assert own > 0 and ours["ids"] is not None
    assert len(ours["inputs"]) == len(plain["inputs"]) + own
    # every input has a source of its own, the model's the same as without the pass
    assert None not in ours["sources"] and len(set(ours["sources"])) == len(ours["sources"])
    count = len(plain["inputs"])
    assert [s.name for s in ours["sources"][:count]] == [s.name for s in plain["sources"]]
    # all parameters are static, those of the plan too, and the images are not
    parameters = [i for i, v in enumerate(ours["inputs"]) if isinstance(v, torch.nn.Parameter)]
    assert len(parameters) == len(list(model.parameters())) + own
    assert set(parameters) <= set(ours["static"])
    images = next(i for i, v in enumerate(ours["inputs"]) if v is x)
    assert images not in ours["static"]
    assert set(ours["static"]) & set(range(count)) == set(plain["static"])


def test_one_tensor_given_twice_is_guarded():
    """Compiled for two equal inputs, then called with different ones, and the other way round."""

    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

        def forward(self, x, y):
            x = x * 1.0
            x.add_(y)  # aliasing matters
            q, k = (
                m(z).unflatten(-1, (2, 4)).transpose(1, 2) for m, z in ((self.q, x), (self.k, y))
            )
            return (q @ k.transpose(-2, -1)).softmax(-1) @ k

    torch.manual_seed(0)
    model = Pair().double().eval()
    a, b = torch.randn(2, 2, 5, 8, dtype=torch.float64)
    for order in ([(a, a), (a, b)], [(a, b), (a, a)]):
        torch._dynamo.reset()
        run = torch.compile(
            model, backend="attnpass", options={"form": "softmax", "inner": "aot_eager"}
        )
        with torch.no_grad():
            for pair in order:
                torch.testing.assert_close(run(*pair), model(*pair), rtol=0, atol=1e-12)


class Mixed(nn.Module):
    """Float32 logits between products that autocast narrows; a mask of another dtype."""

    def __init__(self):
        super().__init__()
        self.qkv, self.o = nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, x, mask):
        with torch.autocast("cpu", torch.bfloat16):
            q, k, v = (y.unflatten(-1, (2, 12)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
            s = (q.float() @ k.float().mT) * 0.3 + torch.ones(5, 5).triu(1) * -1e9
            y = s.softmax(-1).to(v.dtype) @ v
            y = y + F.scaled_dot_product_attention(q, k, v, mask.to(q.dtype))
            with torch.autocast("cpu", enabled=False):
                z = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
            return self.o((y + z).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_dtypes_under_autocast_are_those_of_a_call(inner):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x, mask = Mixed(), torch.randn(2, 5, 24), torch.randn(5, 5)
    report = attnpass.find_sites(model, x, mask)
    assert len(report.sites) == 3 and report.declined == []
    want = model(x, mask)
    for form in ("softmax", "sigmoid"):
        torch._dynamo.reset()
        options = {"inner": inner, "form": form, "strict": True}
        got = torch.compile(model, backend="attnpass", options=options)(x, mask)
        assert got.dtype == want.dtype == torch.bfloat16
        near = torch.allclose(got.float(), want.float(), atol=2e-2)
        assert near == (form == "softmax")
        got.float().sum().backward()
    assert not torch.is_autocast_enabled("cpu")


class Jagged(nn.Module):
    def forward(self, x):
        x = x.unsqueeze(-2).transpose(1, 2)
        return F.scaled_dot_product_attention(x, x, x)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_declined_with_their_cure():
    x = torch.nested.nested_tensor([torch.randn(3, 16), torch.randn(5, 16)], layout=torch.jagged)
    report = attnpass.find_sites(Jagged(), x)
    assert report.sites == [] and "pad them to one length" in report.declined[0].hint
