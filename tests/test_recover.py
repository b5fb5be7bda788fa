"""Calibration as a library call: what it changes, what it refuses, what it holds in memory."""

from __future__ import annotations

import math

import pytest
import torch
from test_cli import TINY
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import attnpass
from attnpass import forms
from attnpass.errors import OptionError, PlanError
from attnpass.kernels.activations import H
from attnpass.kernels.tile import Tile
from attnpass.recover import calibration, fit_gain, fit_pointwise, observation, samples
from attnpass.task import load_task
from attnpass.tuner.digits import DigitsViT


def test_calibrate_is_one_call_and_leaves_the_model_alone():
    task = load_task(TINY)
    before = {k: v.clone() for k, v in task.model.state_dict().items()}
    plan = attnpass.Plan.create(task.model, *task.example, form="sigmoid")
    start = plan.hash
    errors = attnpass.calibrate(task.model, plan, task.calibration)
    assert set(errors) == set(plan.sites) and all(0 <= e < 0.1 for e in errors.values())
    assert plan.hash != start
    for name, value in task.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_calibrate_wants_inputs_and_a_plan_of_the_model():
    task = load_task(TINY)
    plan = attnpass.Plan.create(task.model, *task.example, form="sigmoid")
    with pytest.raises(OptionError, match="expected at least one batch of inputs"):
        attnpass.calibrate(task.model, plan, [])
    other = DigitsViT(dim=16, depth=2, heads=2).eval()
    with pytest.raises(PlanError, match="expected the plan's site blocks.2.attn in the model"):
        attnpass.calibrate(other, plan, task.calibration)


@pytest.mark.parametrize(("form", "h"), [("sigmoid", None), ("relu", "relu")])
def test_calibration_by_blocks_of_rows_is_the_same(form, h, monkeypatch):
    task = load_task(TINY)
    results = []
    for rows in (10_000, 7):
        monkeypatch.setattr(samples, "ROWS", rows)
        plan = attnpass.Plan.create(task.model, *task.example, form=form)
        attnpass.calibrate(task.model, plan, task.calibration)
        results.append(plan.tensors())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-5, atol=1e-6)


def test_calibration_holds_few_logits_at_a_time():
    b, h, n, d = 4, 2, 2048, 4
    q, k, v = torch.randn(3, b, h, n, d)
    module = forms.Pointwise(h, h, d, h="sigmoid", tile=Tile(block_m=128, block_n=256))
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with torch.no_grad(), Watch():
        calibration.fit(module, [samples.Sample(q, k, v, None, None, v)])
    assert largest <= b * h * samples.ROWS * n < b * h * n * n


def test_a_part_in_training_mode_keeps_its_buffers():
    net = DigitsViT(dim=16, depth=2, heads=2).eval()
    net.stem[1].train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = torch.rand(4, 1, 32, 32)
    plan = attnpass.Plan.create(net, x, form="sigmoid")
    attnpass.calibrate(net, plan, [(x,)])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("h", sorted(H))
def test_a_shift_gives_every_row_its_mass(h):
    torch.manual_seed(0)
    x = 3 * torch.randn(2, 3, 5, 40)
    x[..., 30:] = -math.inf
    x[1, :, 2, 1:] = -math.inf
    f = H[h][0]
    mass = torch.tensor([[0.3], [1.0], [2.5], [0.5], [0.9]]) * (0.3 if h == "sigmoid" else 1.0)
    shift = fit_pointwise._solve_shift(f, x, mass)
    kept = torch.isfinite(x)
    found = torch.where(kept, f(torch.where(kept, x - shift, 0.0)), 0.0).sum(-1, keepdim=True)
    torch.testing.assert_close(found, mass.expand_as(found), rtol=1e-4, atol=1e-4)


def skewed(padding: bool = False) -> samples.Sample:
    """Keys whose mean says little of what softmax divides by."""
    torch.manual_seed(0)
    q, k, v = torch.randn(4, 4, 64, 8), torch.randn(4, 2, 64, 8), torch.randn(4, 2, 64, 8)
    k[:, :, :3, 0] += 8  # a few keys that many queries look at, each as much as it will
    q[..., 0] += 2
    keep = torch.ones(4, 1, 1, 64, dtype=torch.bool)
    keep[:, ..., 48:] = not padding
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, keep, enable_gqa=True)
    return samples.Sample(q, k, v, None, keep if padding else None, out)


@pytest.mark.parametrize("h", ["sigmoid", "relu"])
def test_rows_are_shifted_by_what_their_query_says(h, monkeypatch):
    sample, errors = skewed(), []
    for shrink in (1e-2, 1e12):  # at 1e12 only the mean key is left
        monkeypatch.setattr(fit_pointwise, "SHRINK", shrink)
        with torch.no_grad():
            errors.append(calibration.fit(forms.Pointwise(4, 2, 8, h=h), [sample]))
    assert errors[0] < 0.85 * errors[1]


@pytest.mark.parametrize("h", ["sigmoid", "relu"])
@torch.no_grad()
def test_rows_of_padding_teach_nothing(h):
    found = []
    for junk in (False, True):
        s = skewed(padding=True)
        if junk:
            s.q[:, :, 48:], s.out[:, :, 48:] = 50.0, -9.0
        module = forms.Pointwise(4, 2, 8, h=h)
        found.append((calibration.fit(module, [s]), *module.parameters()))
    assert found[0][0] == pytest.approx(found[1][0])
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("fill", [-1e4, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("h", ["sigmoid", "relu"])
@torch.no_grad()
def test_a_mask_that_is_added_is_a_mask(h, fill):
    found = []
    for added in (False, True):
        s = skewed(padding=True)
        # one row of the batch has no key at all
        s.keep = s.keep.repeat(1, 1, 64, 1)
        s.keep[0, 0, 5] = False
        s.out[0, :, 5] = 0.0
        if added:
            s.bias, s.keep = torch.where(s.keep, 0.0, fill), None
        module = forms.Pointwise(4, 2, 8, h=h)
        fit_pointwise._fit_shift(module, [s], 1.0, fit_pointwise._mean_key([s]))
        found.append((module.k0, module.b))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def shifted(z: torch.Tensor) -> torch.Tensor:
    """A linear map of rank 4 of rows ``[B, N, 12]``, with an offset."""
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(*s, generator=generator) for s in ((12, 4), (4, 12)))
    return z @ left @ right + 0.5


@pytest.mark.parametrize(("grid", "prefix"), [(None, 0), ((4, 4), 1)])
@pytest.mark.parametrize("causal", [False, True])
def test_skipat_starts_as_the_nearest_linear_map(grid, prefix, causal):
    torch.manual_seed(0)
    module = forms.SkipAt(12, r=0.5, kernel=3, grid=grid, prefix=prefix, causal=causal)
    z, other = torch.randn(2, 64, 16 + prefix, 12)
    y = shifted(z)
    y[:, :prefix] = 1e3  # these rows pass, nothing can fit them
    with torch.no_grad():
        error = calibration.fit(module, [], [(z, y, None)])
        got = module(other)[:, prefix:]
    assert 0 < error < 0.15
    left = (got - shifted(other[:, prefix:])).square().sum()
    assert left < 0.16 * shifted(other).square().sum()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_skipat_takes_the_dtype_of_the_model(dtype):
    torch.manual_seed(0)
    net, images = DigitsViT(dim=16, depth=3, heads=2).eval(), torch.rand(8, 1, 32, 32)
    options = {"r": 0.5, "kernel": 3}
    plan = attnpass.Plan.create(net, images, form="skipat", form_options=options)
    wide = attnpass.calibrate(net, plan, [(images,)])
    with torch.no_grad():
        want = attnpass.convert(net, plan, images)(images).double()
        net, images = net.to(dtype), images.to(dtype)
        own = attnpass.Plan.create(net, images, form="skipat", form_options=options)
        errors = attnpass.calibrate(net, own, [(images,)])
        # what it is fitted to is rounded to the dtype
        assert errors == pytest.approx(wide, abs=max(2 * torch.finfo(dtype).eps, 1e-4))
        own.values = plan.values
        for run in (
            attnpass.convert(net, own, images),
            torch.compile(net, backend="attnpass", options={"plan": own, "inner": "eager"}),
        ):
            got = run(images)
            assert got.dtype == dtype
            error = (got.double() - want).norm() / want.norm()
            assert error < 8 * max(torch.finfo(x).eps for x in (dtype, torch.float32))


def test_a_mask_is_kept_once_for_all_layers():
    torch.manual_seed(0)
    net = Masks().eval()
    x, keep = torch.randn(2, 6, 8), torch.rand(2, 1, 6, 6) > 0.3
    capture = attnpass.Capture(net).trace(x, keep)
    found = observation.observe(capture, [(x, keep), (x, keep)])
    kept = [s.keep for samples in found.samples.values() for s in samples]
    kept += [m for masks in found.masks.values() for m in masks]
    assert len(kept) == 12 and all(torch.equal(m, keep) for m in kept)
    assert len({m.data_ptr() for m in kept}) == 1 and keep.data_ptr() != kept[0].data_ptr()


class Masks(nn.Module):
    """Three layers of attention under one arbitrary mask."""

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        for _ in range(3):
            q = x.unflatten(2, (2, 4)).transpose(1, 2)
            y = nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=keep)
            x = x + y.transpose(1, 2).flatten(2)
        return x


def test_padding_teaches_skipat_nothing():
    torch.manual_seed(0)
    z = torch.randn(8, 20, 12)
    keep = (torch.arange(20) < torch.arange(4, 20, 2)[:, None])[:, None, None]
    found = []
    for filler in (0.0, 100.0):
        y = torch.where(keep[:, 0, 0, :, None], shifted(z), filler)
        x = torch.where(keep[:, 0, 0, :, None], z, filler)
        module = forms.SkipAt(12, r=1.0, kernel=3)
        with torch.no_grad():
            error = calibration.fit(
                module, [], [(x[:5], y[:5], keep[:5]), (x[5:], y[5:], keep[5:])]
            )
        found.append([torch.tensor(error), *module.parameters()])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_skipat_learns_from_more_items_than_are_sampled(monkeypatch):
    monkeypatch.setattr(observation, "ITEMS", 3)
    monkeypatch.setattr(observation, "BLOCKS", 7)
    task = load_task(TINY)
    capture = attnpass.Capture(task.model).trace(*task.example)
    batches = [tuple(x[:2] for x in inputs) for inputs in task.calibration] * 5
    observed = observation.observe(capture, batches)
    for site in capture.sites:
        assert sum(len(s.q) for s in observed.samples[site.name]) == 3
    assert {sum(len(z) for z, _, _ in own) for own in observed.blocks.values()} == {8}
    assert not observation.observe(capture, batches, blocks=False).blocks


def closed(form: str, **options):
    """A form over 2 heads, one sample of softmax attention over 6 of 8 keys."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, 8, 4, dtype=torch.float64) for _ in "qkv")
    keep = torch.ones(3, 1, 1, 8, dtype=torch.bool)
    keep[..., 6:] = False
    logits = (q @ k.mT / 2).masked_fill(~keep, -math.inf)
    sample = samples.Sample(q, k, v, None, keep, logits.softmax(-1) @ v)
    if form == "hydra":
        return forms.Hydra(2, 4, **options), sample
    return forms.Pointwise(2, 2, 4, h=form, **options), sample


def test_the_mean_key_is_of_the_keys_that_are_kept():
    _, sample = closed("sigmoid")
    expected = sample.k[:, :, :6].mean((0, 2))
    torch.testing.assert_close(fit_pointwise._mean_key([sample]).double(), expected.view(2, -1))


def test_hydras_gain_is_least_squares_over_rows_that_are_no_padding():
    module, sample = closed("hydra")
    with torch.no_grad():
        start = module(sample.q, sample.k, sample.v, None, sample.keep)
        calibration.fit(module, [sample])
    y, out = (x[:, :, :6].transpose(1, 2).flatten(0, 1) for x in (start, sample.out))  # rows, H, d
    expected = torch.stack(
        [
            torch.linalg.lstsq(y[:, h, c, None], out[:, h, c, None]).solution.view(())
            for h in range(2)
            for c in range(4)
        ]
    )
    ratio = module.gain.detach().double().view(-1)  # it starts at 1
    torch.testing.assert_close(ratio, expected.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("h", ["sigmoid", "relu"])
def test_no_other_gain_comes_nearer(h):
    module, sample = closed(h)
    with torch.no_grad():
        least = calibration.fit(module, [sample])
        assert least == pytest.approx(fit_gain._error(module, [sample]))
        kept = module.gain.clone()
        for head in range(2):
            for factor in (0.9, 1.1):
                module.gain.copy_(kept).view(2, -1)[head] *= factor
                assert fit_gain._error(module, [sample]) > least


@pytest.mark.parametrize(
    ("form", "options"), [("sigmoid", {}), ("hydra", {}), ("skipat", {"r": 0.5})]
)
def test_frozen_parameters_are_judged_and_stay(form, options):
    task = load_task(TINY)
    plan = attnpass.Plan.create(task.model, *task.example, form=form, form_options=options)
    before = plan.frozen().hash
    stayed = attnpass.calibrate(task.model, plan, task.calibration)
    assert plan.hash == before
    free = attnpass.Plan.create(task.model, *task.example, form=form, form_options=options)
    fitted = attnpass.calibrate(task.model, free, task.calibration)
    assert all(stayed[s] > fitted[s] for s in fitted) and fitted


class Exchanged(nn.Module):
    """Attention of which only the softmax node can be exchanged."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.qkv, self.heads = how, nn.Linear(32, 96), nn.Linear(4, 4)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        v = self.heads_of(x)[2]
        return (self.logits(x, keep).softmax(-1) @ v).transpose(1, 2).flatten(2)

    def heads_of(self, x: Tensor) -> list[Tensor]:
        return [y.unflatten(-1, (4, 8)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1)]

    def logits(self, x: Tensor, keep: Tensor) -> Tensor:
        q, k, _ = self.heads_of(x)
        s = q @ k.transpose(-2, -1)
        if self.how == "talking heads":
            return self.heads(s.transpose(1, 3)).transpose(1, 3)
        s = 5 * torch.tanh(s / 5)
        if self.how == "causal":
            below = torch.ones(s.shape[-2:], dtype=torch.bool).tril()
            return s.masked_fill(~below, -math.inf)
        return s.masked_fill(~keep[:, None, None], -math.inf) if self.how == "padding" else s


@pytest.mark.parametrize("form", ["sigmoid", "relu"])
@pytest.mark.parametrize("how", ["soft cap", "causal", "padding", "talking heads"])
@torch.no_grad()
def test_where_softmax_alone_is_exchanged_its_logits_teach(how, form):
    torch.manual_seed(0)
    model = Exchanged(how).eval()
    model.qkv.weight[:64] *= 3
    x, keep = torch.randn(6, 40, 32), torch.ones(6, 40, dtype=torch.bool)
    keep[1:, 25:] = False
    rows = keep.unsqueeze(-1) if how == "padding" else 1.0
    batch = (x, keep)
    plan = attnpass.Plan.create(model, *batch, form=form)
    (site,) = attnpass.find_sites(model, *batch).sites
    assert site.swapped

    def error() -> float:
        capture = attnpass.Capture(model).trace(*batch)
        capture.use(plan, strict=True)
        want = model(*batch) * rows
        return float((capture(*batch) * rows - want).square().sum() / want.square().sum())

    before = error()
    (told,) = attnpass.calibrate(model, plan, [batch]).values()
    logits = model.logits(*batch)
    counts = keep[:, None, :, None] if how == "padding" else torch.ones(1)
    wanted = logits.softmax(-1).double() * counts
    module = plan.module(site)
    module.causal = False  # -inf says it already
    weights = module(logits, logits > -math.inf).double() * counts
    left = float((weights - wanted).square().sum() / wanted.square().sum())
    assert told == pytest.approx(left, rel=1e-4) and error() < 0.9 * before


@torch.no_grad()
def test_of_a_map_few_rows_are_held(monkeypatch):
    monkeypatch.setattr(samples, "ROOM_ROWS", 7)
    monkeypatch.setattr(samples, "ROOM_MAP", 2 * 4 * 7 * 40)
    torch.manual_seed(0)
    s, keep = torch.randn(6, 4, 40, 40), torch.rand(6, 1, 1, 40) > 0.3
    for causal in (False, True):
        held = samples.MapSample.of(s, keep, causal, True, samples.ROOM_MAP)
        assert held.map.shape == (2, 4, 7, 40) and held.keep.shape == (2, 1, 7, 40)
        assert torch.equal(held.map, s[:2, :, ::6]) and held.map.data_ptr() != s.data_ptr()
        below = torch.ones(40, 40, dtype=torch.bool)
        whole = keep[:2] & (below.tril() if causal else below)
        assert torch.equal(held.keep, whole[:, :, ::6])
        assert torch.equal(held.rows[:, 0, :, 0], keep[:2, 0, 0, ::6])
    # between two sequences of one length a mask of keys says nothing of the queries
    assert samples.MapSample.of(s, keep, False, False, 1).rows is None


class Added(Exchanged):
    """A float mask of the caller's own."""

    def logits(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, _ = self.heads_of(x)
        return 5 * torch.tanh(q @ k.transpose(-2, -1) / 5) + mask


@pytest.mark.parametrize("fill", [-1e9, torch.finfo(torch.float32).min, -math.inf])
@torch.no_grad()
def test_a_mask_that_is_added_to_a_map_is_a_mask(fill):
    torch.manual_seed(0)
    model, x = Added("").eval(), torch.randn(6, 40, 32)
    mask = torch.zeros(6, 1, 1, 40)
    mask[..., 25:] = fill
    plan = attnpass.Plan.create(model, x, mask, form="relu")
    (told,) = attnpass.calibrate(model, plan, [(x, mask)]).values()
    (values,) = plan.values.values()
    assert told < 0.5 and float(values["b"].abs().max()) < 10


class Either(nn.Module):
    """Causal by itself, unless it is given a mask: two graphs of one attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (y.unflatten(-1, (4, 8)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
        return y.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("first", [0, 1])
@torch.no_grad()
def test_every_graph_is_observed_as_it_is(first):
    torch.manual_seed(0)
    model, x = Either().eval(), torch.randn(2, 10, 32)
    batches = [(x, torch.rand(2, 1, 10, 10) > 0.3), (x,)]
    batches = [batches[first], batches[1 - first]]
    capture = attnpass.Capture(model).trace(*batches[0])
    found = observation.observe(capture, batches)
    (samples,) = found.samples.values()
    for batch, sample in zip(batches, samples, strict=True):
        torch.testing.assert_close(sample.out.transpose(1, 2).flatten(2), model(*batch))
        assert sample.causal == (len(batch) == 1)


class Windows(nn.Module):
    """A first attention in windows that join the batch, a second over all."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 24), nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        x = x + self._attend(self.a, x.reshape(b * t // 4, 4, 8)).reshape(b, t, 8)
        return x + self._attend(self.b, x)

    def _attend(self, qkv: nn.Module, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (2, 4)).transpose(1, 2) for y in qkv(x).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return y.transpose(1, 2).flatten(2)


def test_every_site_is_observed_until_it_has_enough():
    batches = [(torch.randn(1, 256, 8),) for _ in range(samples.ITEMS + 3)]
    capture = attnpass.Capture(Windows().eval()).trace(*batches[0])
    found = observation.observe(capture, batches, blocks=False)
    assert sorted(sum(len(s.q) for s in x) for x in found.samples.values()) == [samples.ITEMS] * 2
    assert min(found.items.values()) == samples.ITEMS
