"""What plans have in common is computed once, and every plan's outputs are what they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import attnpass
from attnpass.capture import shared
from attnpass.capture.shared import Given, Shared
from attnpass.plan import Entry

MANY = 2**30


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x, keep):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None, None])
        return x + self.out(out.transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    def __init__(self, layers=4, noise=0.0):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(layers))
        self.noise = noise

    def forward(self, x, keep):
        for block in self.blocks:
            x = block(x, keep)
            if self.noise:
                x = x + torch.rand_like(x)
        return x.mean(1)


@pytest.fixture
def given():
    torch.manual_seed(0)
    keep = torch.ones(3, 6, dtype=torch.bool)
    keep[1, 4:] = False
    return torch.randn(3, 6, 8), keep


def linears(run, *given):
    """The result, and how many linear layers ran."""
    with torch.no_grad(), torch.profiler.profile() as seen:
        out = run(*given)
    return out, sum(row.count for row in seen.key_averages() if row.key == "aten::linear")


def plan_of(capture, *names):
    """A plan of forms for the blocks, from the first one on."""
    return capture.plan(
        {f"blocks.{i}": Entry(form) for i, form in enumerate(names) if form != "softmax"}
    )


PLANS = [
    ("softmax", "softmax", "softmax", "sigmoid"),
    ("softmax", "softmax", "relu", "sigmoid"),
    ("hydra", "softmax", "relu", "sigmoid"),
    ("hydra", "softmax", "relu", "softmax"),
    ("hydra", "skipat", "skipat", "softmax"),
    ("softmax", "skipat", "softmax", "sigmoid"),
    ("softmax", "softmax", "softmax", "sigmoid"),
]


def test_outputs_are_exactly_what_they_are_without(given):
    model = Encoder().eval()
    capture = attnpass.Capture(model).trace(*given)
    other = given[0] + 1, given[1].flip(0)
    for inputs in (given, other):
        plans = [plan_of(capture, *names) for names in PLANS]
        alone = []
        for plan in plans:
            capture.use(plan)
            alone.append(linears(capture, *inputs)[0])
        with capture.sharing(MANY):
            for plan, want in zip(plans, alone, strict=True):
                capture.use(plan)
                for _ in range(2):
                    assert torch.equal(linears(capture, *inputs)[0], want)


def test_a_plan_starts_where_it_first_differs(given):
    capture = attnpass.Capture(Encoder().eval()).trace(*given)
    with capture.sharing(MANY):
        counts = []
        for names in [("softmax",) * 4, *PLANS[:4]]:
            capture.use(plan_of(capture, *names))
            counts.append(linears(capture, *given)[1])
    # eight layers; before an attention stands the block's input, so that its projection runs again
    assert counts == [8, 2, 4, 8, 2]


def test_a_piece_is_known_by_its_values(given):
    capture = attnpass.Capture(Encoder().eval()).trace(*given)
    plan = plan_of(capture, "softmax", "sigmoid")
    with capture.sharing(MANY):
        capture.use(plan)
        before = linears(capture, *given)[0]
        for value in plan.values["blocks.1"].values():
            value.data += 1
        capture.use(plan)
        after = linears(capture, *given)[0]
    capture.use(plan)
    assert torch.equal(linears(capture, *given)[0], after) and not torch.equal(before, after)


@pytest.mark.parametrize("written", ["weight", "input", "data"])
def test_what_was_written_is_computed_again(given, written):
    model = Encoder().eval()
    capture = attnpass.Capture(model).trace(*given)
    capture.use(plan_of(capture, "softmax", "softmax", "softmax", "sigmoid"))
    with torch.no_grad(), capture.sharing(MANY):
        capture(*given)
        if written == "weight":
            model.blocks[0].qkv.weight.mul_(2)
        elif written == "data":
            model.blocks[0].qkv.weight.data = model.blocks[0].qkv.weight.data * 2
        else:
            given[0].mul_(2)
        got = capture(*given)
    with torch.no_grad():
        assert torch.equal(got, capture(*given))


def test_a_kept_value_that_a_caller_writes_is_not_used(given):
    class Hidden(Encoder):
        def forward(self, x, keep):
            every = []
            for block in self.blocks:
                x = block(x, keep)
                every.append(x)
            return every

    capture = attnpass.Capture(Hidden().eval()).trace(*given)
    with torch.no_grad(), capture.sharing(MANY):
        capture.use(plan_of(capture, *PLANS[0]))
        for x in capture(*given):
            x.zero_()
        got = capture(*given)
    with torch.no_grad():
        for a, b in zip(got, capture(*given), strict=True):
            assert torch.equal(a, b)


def test_outputs_belong_to_the_caller(given):
    class Doubled(Encoder):
        def forward(self, x, keep):
            x = x * 2
            return x, x * 2, x.flatten(), super().forward(x, keep)

    capture = attnpass.Capture(Doubled().eval()).trace(*given)
    with torch.no_grad():
        want = capture(*given)
    with torch.no_grad(), capture.sharing(MANY):
        for _ in range(3):
            got = capture(*given)
            for a, b in zip(got, want, strict=True):
                assert torch.equal(a, b)
            for x in (got[1], got[3], got[0]):
                x.numpy()[:] = 7
            assert torch.equal(got[2], got[0].flatten()), "outputs that were one memory are"


def test_one_array_that_is_filled_again_is_another_batch(given):
    capture = attnpass.Capture(Encoder().eval()).trace(*given)
    array = given[0].numpy()
    with torch.no_grad(), capture.sharing(MANY):
        before = capture(*given)
        array += 1
        after = capture(*given)
        assert not torch.equal(before, after)
    with torch.no_grad():
        assert torch.equal(after, capture(*given))


def test_one_site_in_graphs_with_other_masks(given):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(8, 24), nn.Linear(8, 8)

        def attend(self, x, causal):
            q, k, v = self.one(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
            return self.two(out.transpose(1, 2).flatten(2))

        def forward(self, x):
            first = self.attend(x, False)
            torch._dynamo.graph_break()
            return first, self.attend(x, True)

    capture = attnpass.Capture(Twice().eval()).trace(given[0])
    plan = capture.plan({site.name: Entry("sigmoid") for site in capture.sites})
    capture.use(plan)
    with torch.no_grad():
        want = capture(given[0])
        with capture.sharing(MANY):
            capture.use(plan)
            for a, b in zip(capture(given[0]), want, strict=True):
                assert torch.equal(a, b)


def test_inference_mode_and_its_tensors_are_not_shared(given):
    capture = attnpass.Capture(Encoder().eval()).trace(*given)
    with torch.inference_mode():
        made = given[0].clone(), given[1]
    with capture.sharing(MANY):
        with torch.no_grad():
            want = capture(*given)
            assert torch.equal(capture(*made), want)
        with torch.inference_mode():
            assert torch.equal(capture(*given), want)


def test_random_numbers_gradients_and_autocast_are_not_shared(given):
    capture = attnpass.Capture(Encoder(noise=0.1).eval()).trace(*given)
    with torch.no_grad(), capture.sharing(MANY):
        assert not torch.equal(capture(*given), capture(*given))
    capture = attnpass.Capture(Encoder().eval()).trace(*given)
    with capture.sharing(MANY):
        with torch.no_grad():
            capture(*given)
        assert capture(*given).requires_grad
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            narrow = capture(*given)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert torch.equal(narrow, capture(*given))


def test_it_holds_no_more_than_its_limit(given):
    capture = attnpass.Capture(Encoder().eval()).trace(*given)
    size = given[0].nbytes
    with capture.sharing(3 * size):
        held = capture._shared
        for names in PLANS:
            capture.use(plan_of(capture, *names))
            linears(capture, *given)
            assert 0 < held.held <= 3 * size
    assert capture._shared is None


def test_batches_that_are_made_anew_are_forgotten(given, monkeypatch):
    monkeypatch.setattr(shared, "_BATCHES", 3)
    capture = attnpass.Capture(Encoder().eval()).trace(*given)
    with torch.no_grad(), capture.sharing(MANY):
        for _ in range(2):
            for i in range(5):
                again = given[0] + i, given[1]
                assert torch.equal(capture(*again), capture.model(*again))
        assert len(capture._shared._batches) <= 3


def test_numbers_of_other_types_are_other_arguments():
    graph = torch.fx.symbolic_trace(lambda x: (x * 1, x * 1.0, x * True, x * -0.0, x * 0.0))
    names = Shared(MANY).named(graph, Given((), ()))
    assert len(set(names.values())) == len(graph.graph.nodes)
