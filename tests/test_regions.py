"""Attention inside regions: checkpoints, nested compile regions, autocast, backends, vmap."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import attnpass
from attnpass import Plan

BOUND = 1e-10


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.o = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        p = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1)
        return x + self.o((p @ v).transpose(1, 2).flatten(2))


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Attention()

    @torch.compiler.nested_compile_region
    def forward(self, x):
        return self.inner(x)


def autocast(layer, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return layer(x)


def one_backend(layer, x):
    with sdpa_kernel(SDPBackend.MATH):
        return layer(x)


def recomputed(layer, x):
    return checkpoint(layer, x, use_reentrant=False)


def plain(layer, x):
    return layer(x)


class Stack(nn.Module):
    def __init__(self, how, cls=Attention, count=3):
        super().__init__()
        self.layers, self.how = nn.ModuleList(cls() for _ in range(count)), how

    def forward(self, x):
        for layer in self.layers:
            x = self.how(layer, x)
        return x


def made(how, cls=Attention, count=3):
    torch.manual_seed(0)
    model = Stack(how, cls, count)
    return model if how is autocast else model.double()


def data(model, grad=True):
    dtype = next(model.parameters()).dtype
    return torch.randn(2, 5, 16, dtype=dtype, requires_grad=grad)


def results(model, call, x):
    """The output and all gradients."""
    out = call(x)
    return [out, *torch.autograd.grad(out.float().square().mean(), [x, *model.parameters()])]


def error(got, want):
    return max(
        ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item()
        for a, b in zip(got, want, strict=True)
    )


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
    torch._dynamo.reset()
    free = made(plain)  # the same weights, no region
    options["form"] = "sigmoid"
    formed = results(free, torch.compile(free, backend="attnpass", options=options), x)
    torch._dynamo.reset()
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


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_checkpointed_attention_is_still_recomputed(form):
    """The rewritten graph keeps no more for the backward pass than the checkpointed model."""
    model = made(recomputed)
    x = torch.randn(2, 64, 16, dtype=torch.float64, requires_grad=True)
    options = {"inner": _partitioned, "form": form}
    compiled = torch.compile(model, backend="attnpass", options=options)
    checkpointed = saved_by(torch.compile(model, backend=_partitioned), x)
    torch._dynamo.reset()
    whole = made(plain)
    everything = saved_by(torch.compile(whole, backend="aot_eager"), x)
    torch._dynamo.reset()
    got = saved_by(compiled, x)
    assert got <= checkpointed * 1.01
    assert got < everything / 2


def _partitioned(gm, inputs):
    """AOTAutograd with the partitioner that honours recomputation tags, no code generation."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.compilers import nop
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    compiler = aot_autograd(
        fw_compiler=nop, bw_compiler=nop, partition_fn=min_cut_rematerialization_partition
    )
    return compiler(gm, inputs)


def branch(layer, x):
    return torch.cond(x.sum() > -1e9, layer, lambda y: y + 1, (x,))


def mapped(layer, x):
    return torch.vmap(lambda y: layer(y[None])[0])(x)


def flexible(layer, x):
    from torch.nn.attention.flex_attention import flex_attention

    q, k, v = layer.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4).unbind(0)
    return x + layer.o(flex_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("how", "code"),
    [(branch, "HOP_UNSUPPORTED"), (mapped, "HOP_UNSUPPORTED"), (flexible, "FLEX")],
    ids=["cond", "vmap", "flex"],
)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_regions_that_are_kept_as_they_are(how, code):
    """One attention inside a kept region, one beside it: the other is rewritten."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept, self.free = Attention(), Attention()

        def forward(self, x):
            return self.free(how(self.kept, x))

    torch.manual_seed(0)
    model = Both().double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    with torch.no_grad():
        want = model(x)
        plan = Plan.create(model, x, form="relu")
        assert [*plan.sites] == ["free"]
        capture = attnpass.Capture(model).trace(x)
        capture.use(plan)
        formed = capture(x)
        assert error([formed], [want]) > 1e-3
        for inner in ("eager", "aot_eager"):
            torch._dynamo.reset()
            attnpass.reset_report()
            run = torch.compile(model, backend="attnpass", options={"inner": inner, "plan": plan})
            assert error([run(x)], [formed]) < BOUND
            (declined,) = attnpass.compiled_report().declined
            assert declined.code == code and declined.hint
            assert "test_regions" in declined.source or "flex" in declined.source


def test_zero_graphs_are_said():
    """nn.Transformer with a mask and no word on causality breaks in every frame upstream."""
    model = nn.Transformer(16, 2, 1, 1, 16, batch_first=True).eval()
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    x = torch.randn(2, 5, 16)
    report = attnpass.find_sites(model, x, x, tgt_mask=mask, tgt_is_causal=True)
    assert len(report.sites) == 3
    with pytest.raises(attnpass.CaptureError, match="got no graph"):
        attnpass.find_sites(model, x, x, tgt_mask=mask)
