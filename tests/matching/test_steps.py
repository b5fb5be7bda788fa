"""One reader per operator between product and softmax: what it does to the logits."""

import math

import pytest
import torch
from tracing import code_of, shapes, site_of

Q, K, V = shapes()
HEADS = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).view(3, 1, 1)
PAD = torch.ones(2, 1, 1, 7, dtype=torch.bool)
PAD[1, ..., 4:] = False


def on_logits(step):
    """Attention in which ``step`` stands between product and softmax."""

    def run(q, k, v, *more):
        return step(q @ k.mT, *more).softmax(-1) @ v

    return run


SCALES = {
    "mul": (lambda s: s * 0.5, 0.5),
    "mul-left": (lambda s: 0.5 * s, 0.5),
    "div": (lambda s: s / 4, 0.25),
    "true-divide": (lambda s: torch.true_divide(s, 4), 0.25),
    "twice": (lambda s: s * 0.5 / 2, 0.25),
    "cast": (lambda s: s.to(torch.float64).contiguous() * 0.5, 0.5),
    "copy": (lambda s: s.clone(), 1.0),
    "maximum-of-the-row": (lambda s: s - s.amax(-1, keepdim=True), 1.0),
    "maximum-with-index": (lambda s: s - s.max(-1, keepdim=True).values, 1.0),
    "maximum-of-everything": (lambda s: s - s.max(), 1.0),
}


@pytest.mark.parametrize("name", SCALES)
def test_numbers_are_folded_into_the_scale(name):
    step, scale = SCALES[name]
    site = site_of(on_logits(step), Q, K, V)
    assert site.scale == pytest.approx(scale)
    assert (site.mask, site.bias, site.swapped) == (frozenset(), False, False)


@pytest.mark.parametrize(
    "step",
    [lambda s, h: s * h, lambda s, h: h * s, lambda s, h: s / h],
    ids=["mul", "mul-left", "div"],
)
def test_a_factor_of_every_row_goes_to_the_queries(step):
    site = site_of(on_logits(step), Q, K, V, HEADS)
    assert site.scale is None and not site.bias


MASKS = {
    "masked_fill": lambda s, m: s.masked_fill(~m, -math.inf),
    "where": lambda s, m: torch.where(m, s, -math.inf),
    "where-inverted": lambda s, m: torch.where(~m, -math.inf, s),
}


@pytest.mark.parametrize("name", MASKS)
def test_selected_logits_are_masked(name):
    site = site_of(on_logits(MASKS[name]), Q, K, V, PAD)
    assert site.mask == {"padding"} and site.fill == -math.inf and not site.added


LOWEST = torch.finfo(torch.float64).min
FLOORS = {
    "clamp": lambda s: s.clamp(min=LOWEST),
    "clamp_min": lambda s: torch.clamp_min(s, LOWEST),
    "maximum": lambda s: torch.maximum(s, torch.full((), LOWEST, dtype=s.dtype)),
    "max": lambda s: torch.max(s, torch.full((), LOWEST, dtype=s.dtype)),
}


@pytest.mark.parametrize("name", FLOORS)
def test_a_floor_below_every_logit_raises_the_fill(name):
    step = FLOORS[name]
    site = site_of(on_logits(lambda s, m: step(s.masked_fill(~m, -math.inf))), Q, K, V, PAD)
    assert site.fill == LOWEST


def test_a_subtracted_tensor_is_a_bias():
    site = site_of(on_logits(lambda s, b: s - b), Q, K, V, torch.randn(3, 5, 7).double())
    assert site.bias


def test_a_cap_is_noted():
    site = site_of(on_logits(lambda s: torch.tanh(s / 30) * 30), Q, K, V)
    assert site.swapped and site.legal["hydra"].code == "SOFTCAP"


# the nearest impostors: none of these operators may be stepped over
IMPOSTORS = {
    "rounded": (lambda s: torch.div(s, 0.5, rounding_mode="floor"), "UNKNOWN_SCORE_OP:div"),
    "added-number": (lambda s: s + 1.0, "UNKNOWN_SCORE_OP:add"),
    "added-with-alpha": (
        lambda s: torch.add(s, torch.ones(7, dtype=s.dtype), alpha=2),
        "UNKNOWN_SCORE_OP:add",
    ),
    "number-over": (lambda s: 1.0 / s, "UNKNOWN_SCORE_OP:reciprocal"),
    "maximum-of-columns": (lambda s: s - s.amax(-2, keepdim=True), "UNKNOWN_SCORE_OP:sub"),
    "filled-with-zero": (lambda s: s.masked_fill(s > 1, 0.0), "UNKNOWN_SCORE_OP:masked_fill"),
    "floor-that-is-felt": (lambda s: s.clamp(min=-1.0), "UNKNOWN_SCORE_OP:clamp"),
    "ceiling": (lambda s: s.clamp(-1e30, 1.0), "UNKNOWN_SCORE_OP:clamp"),
    "squared": (lambda s: s**2, "UNKNOWN_SCORE_OP:pow"),
    "two-columns-joined": (
        lambda s: torch.cat([s, s[..., :2]], -1)[..., :7],
        "UNKNOWN_SCORE_OP:cat",
    ),
}


@pytest.mark.parametrize("name", IMPOSTORS)
def test_other_operators_are_declined_by_name(name):
    step, code = IMPOSTORS[name]
    assert code_of(on_logits(step), Q, K, V) == code
