"""One rule per operator: which axes of an operator's operands its result has."""

import pytest
import torch
import torch.nn.functional as F
from torch import randn
from tracing import axes_of

from attnpass.graph import op_name, operators
from attnpass.matching import axis_rules
from attnpass.matching.factors import kinds

aten = torch.ops.aten
LONG = torch.tensor([2, 0, 1])
X = randn(2, 3, 4)
EQUAL = randn(3, 3, 3)


def same(i, *more, of=0):
    """The axes ``i, *more`` of input ``of``, merged."""
    return ("same", of, (i, *more))


def new(kind):
    """One factor of its own, of this kind."""
    return ("new", kind)


ONE = ("same", 0, ())
"""An axis of size 1: no factor."""

WHOLE = [same(0), same(1), same(2)]
MERGED = [same(0, 1), same(2)]

# name, function, inputs, how many of the last are parameters, the axes expected
VIEWS = [
    ("view", lambda x: x.view(6, 4), [X], 0, MERGED),
    ("reshape", lambda x: x.reshape(2, 12), [X], 0, [same(0), same(1, 2)]),
    ("_unsafe_view", lambda x: aten._unsafe_view(x, [6, 4]), [X], 0, MERGED),
    ("flatten", lambda x: x.flatten(1), [X], 0, [same(0), same(1, 2)]),
    ("unflatten", lambda x: x.flatten(1).unflatten(1, (3, 4)), [X], 0, WHOLE),
    ("unsqueeze", lambda x: x.unsqueeze(1), [X], 0, [same(0), ONE, same(1), same(2)]),
    ("squeeze", lambda x: x.squeeze(1), [randn(2, 1, 4)], 0, [same(0), same(2)]),
    ("view_copy", lambda x: aten.view_copy(x, [6, 4]), [X], 0, MERGED),
    ("view_as", lambda x, y: aten.view_as(x, y), [X, randn(6, 4)], 0, MERGED),
    ("reshape_as", lambda x, y: aten.reshape_as(x, y), [X, randn(6, 4)], 0, MERGED),
    ("_reshape_alias", lambda x: aten._reshape_alias(x, [6, 4], [4, 1]), [X], 0, MERGED),
]
TURNED = [same(2), same(1), same(0)]
TRANSPOSES = [
    ("transpose", lambda x: x.transpose(0, 2), [X], 0, TURNED),
    ("swapaxes", lambda x: aten.swapaxes(x, 0, 2), [X], 0, TURNED),
    ("swapdims", lambda x: aten.swapdims(x, 0, 2), [X], 0, TURNED),
    ("permute", lambda x: x.permute(2, -3, 1), [X], 0, [same(2), same(0), same(1)]),
    ("t", lambda x: aten.t(x), [randn(3, 4)], 0, [same(1), same(0)]),
    ("mT", lambda x: aten.mT(x), [X], 0, [same(0), same(2), same(1)]),
    ("numpy_T", lambda x: aten.numpy_T(x), [randn(3, 4)], 0, [same(1), same(0)]),
]
REPEATED = [same(0), new("repeat"), same(2)]
NARROW = randn(2, 1, 4)
BROADCASTS = [
    ("expand", lambda x: x.expand(2, 3, 4), [NARROW], 0, REPEATED),
    ("expand_as", lambda x, y: aten.expand_as(x, y), [NARROW, X], 0, REPEATED),
    ("broadcast_to", lambda x: aten.broadcast_to(x, [2, 3, 4]), [NARROW], 0, REPEATED),
    ("repeat_interleave", lambda x: x.repeat_interleave(2, 1), [X], 0, None),
]
OTHER = [same(0), new("input"), same(2)]
MOVES = [
    ("cat", lambda x: torch.cat([x, x], 1), [X], 0, OTHER),
    ("concat", lambda x: aten.concat([x, x], 1), [X], 0, OTHER),
    ("concatenate", lambda x: aten.concatenate([x, x], 1), [X], 0, OTHER),
    ("roll", lambda x: x.roll(1, 1), [X], 0, OTHER),
    ("flip", lambda x: x.flip(1), [X], 0, OTHER),
    ("gather", lambda x: x.gather(1, torch.zeros(2, 2, 4).long()), [X], 0, OTHER),
    ("index_select", lambda x, i: x.index_select(1, i), [X, LONG], 0, OTHER),
    ("pad", lambda x: aten.pad(x, [0, 0, 1, 1]), [X], 0, OTHER),
    ("constant_pad_nd", lambda x: aten.constant_pad_nd(x, [0, 0, 1, 1]), [X], 0, OTHER),
    ("slice", lambda x: x[:, 1:], [X], 0, OTHER),
    ("select", lambda x: x[:, 1], [X], 0, [same(0), same(2)]),
    ("index", lambda x, i: x[:, i], [X, LONG], 0, [same(0), same(0, of=1), same(2)]),
]
REDUCTIONS = [
    ("sum", lambda x: x.sum(1), [X], 0, [same(0), same(2)]),
    ("mean", lambda x: x.mean((0, -1)), [X], 0, [same(1)]),
    ("amax", lambda x: x.amax(-1, keepdim=True), [X], 0, [same(0), same(1), ONE]),
    ("amin", lambda x: x.amin(1), [X], 0, [same(0), same(2)]),
    ("var", lambda x: x.var(1), [EQUAL], 0, [same(0), same(2)]),
    ("std", lambda x: x.std(1), [EQUAL], 0, [same(0), same(2)]),
    ("norm", lambda x: aten.norm(x, 2, [1]), [EQUAL], 0, [same(0), same(2)]),
    ("linalg_vector_norm", lambda x: x.norm(dim=1), [EQUAL], 0, [same(0), same(2)]),
]
COPIES = [
    ("to", lambda x: x.to(torch.float64), [X], 0, WHOLE),
    ("_to_copy", lambda x: aten._to_copy(x, dtype=torch.float64), [X], 0, WHOLE),
    ("type_as", lambda x, y: aten.type_as(x, y), [X, randn(1).double()], 0, WHOLE),
    ("clone", lambda x: x.clone(), [X], 0, WHOLE),
    ("contiguous", lambda x: aten.contiguous(x.mT), [X], 0, [same(0), same(2), same(1)]),
    ("dropout", lambda x: F.dropout(x, 0.5), [X], 0, WHOLE),
    ("view_as_real", torch.view_as_real, [torch.complex(X, X)], 0, [*WHOLE, new("feature")]),
    ("view_as_complex", torch.view_as_complex, [randn(2, 3, 2)], 0, [same(0), same(1)]),
]
W = randn(5, 4)
MADE = [same(0), same(1), new("feature")]
IMAGE = [same(0), new("feature")]
PRODUCTS = [
    ("linear", F.linear, [X, W], 1, MADE),
    ("matmul", lambda x, w: x @ w, [X, randn(4, 5)], 1, MADE),
    ("mm", torch.mm, [randn(3, 4), randn(4, 5)], 0, [same(0), same(1, of=1)]),
    ("bmm", torch.bmm, [X, randn(2, 4, 5)], 0, [same(0), same(1), same(2, of=1)]),
    ("addmm", lambda x, b, w: torch.addmm(b, x, w), [randn(3, 4), randn(5), randn(4, 5)], 2, None),
    (
        "baddbmm",
        lambda x, y: torch.baddbmm(x.sum((1, 2), keepdim=True), x, y),
        [X, randn(2, 4, 5)],
        0,
        [same(0), same(1), same(2, of=1)],
    ),
    ("einsum", lambda x, w: torch.einsum("btd,ed->bte", x, w), [X, W], 1, MADE),
    ("embedding", lambda i, w: F.embedding(i, w), [LONG, W], 1, [same(0), new("feature")]),
    (
        "scaled_dot_product_attention",
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
        [X, randn(2, 7, 4), randn(2, 7, 6)],
        0,
        [same(0), same(1), same(2, of=2)],
    ),
    ("conv1d", F.conv1d, [randn(2, 4, 8), randn(5, 4, 3)], 1, [*IMAGE, new("token")]),
    ("conv2d", F.conv2d, [randn(2, 4, 8, 6), randn(5, 4, 3, 3)], 1, [*IMAGE, *[new("token")] * 2]),
    (
        "conv3d",
        F.conv3d,
        [randn(1, 4, 8, 6, 5), randn(5, 4, 3, 3, 3)],
        1,
        [*IMAGE, *[new("token")] * 3],
    ),
    (
        "convolution",
        lambda x, w: aten.convolution(x, w, None, [1], [0], [1], False, [0], 1),
        [randn(2, 4, 8), randn(5, 4, 3)],
        1,
        [*IMAGE, new("token")],
    ),
]
IMAGES = {1: randn(2, 4, 8), 2: randn(2, 4, 8, 6), 3: randn(2, 4, 8, 6, 12)}
CHANNELS = [same(0), same(1)]


def resized(mode, i):
    """Twice as many places along each axis."""
    return lambda x: F.interpolate(x, scale_factor=2, mode=mode), [IMAGES[i]]


def pooled(name):
    """Half as many places along each axis, or two."""
    return lambda x: getattr(F, name)(x, 2)


PLACES = [
    (name, pooled(name), [IMAGES[i]], 0, [*CHANNELS, *[new("token")] * i])
    for i in (1, 2, 3)
    for name in (f"{kind}_pool{i}d" for kind in ("max", "avg", "adaptive_avg"))
]
PLACES += [
    (f"upsample_{name}", *resized(mode, i), 0, [*CHANNELS, *[new("token")] * i])
    for name, mode, i in [
        *((f"nearest{i}d", "nearest", i) for i in (1, 2, 3)),
        ("linear1d", "linear", 1),
        ("bilinear2d", "bilinear", 2),
        ("bicubic2d", "bicubic", 2),
        ("trilinear3d", "trilinear", 3),
    ]
]
PLACES += [
    (
        f"conv_transpose{i}d",
        getattr(F, f"conv_transpose{i}d"),
        [IMAGES[i], randn(4, 5, *[3] * i)],
        1,
        [*IMAGE, *[new("token")] * i],
    )
    for i in (1, 2, 3)
]
SHUFFLED = [same(0), new("feature"), new("token"), new("token")]
PLACES += [
    ("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), [randn(2, 8, 3, 5)], 0, SHUFFLED),
    ("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), [IMAGES[2]], 0, SHUFFLED),
    ("glu", lambda x: F.glu(x, 1), [IMAGES[1]], 0, OTHER),
]
CASES = [*VIEWS, *TRANSPOSES, *BROADCASTS, *MOVES, *REDUCTIONS, *COPIES, *PRODUCTS, *PLACES]
SPECIAL = {
    "repeat_interleave": [same(0), new("input"), same(2)],
    "addmm": [same(0), new("feature")],
}


@pytest.mark.parametrize(
    ("name", "function", "inputs", "weights", "expected"), CASES, ids=[c[0] for c in CASES]
)
def test_rule(name, function, inputs, weights, expected):
    found, given, gm = axes_of(function, *inputs, weights=weights)
    assert name in {op_name(n) for n in gm.graph.nodes if n.op == "call_function"}
    expected = SPECIAL.get(name, expected)
    assert len(found) == len(expected)
    every = {factor for axes in given for axis in axes for factor in axis}
    for axis, want in zip(found, expected, strict=True):
        if want[0] == "same":
            assert axis == tuple(f for i in want[2] for f in given[want[1]][i])
        else:
            assert kinds(axis) == {want[1]} and len(axis) == 1
            assert not every & set(axis)


def test_every_operator_with_a_rule_has_a_case():
    assert set(axis_rules.RULES) == {case[0] for case in CASES}


SPLITS = {
    "split": lambda x: x.split(2, 1),
    "split_with_sizes": lambda x: aten.split_with_sizes(x, [2, 2], 1),
    "chunk": lambda x: x.chunk(2, 1),
    "tensor_split": lambda x: aten.tensor_split(x, 2, 1),
    "unsafe_split": lambda x: aten.unsafe_split(x, 2, 1),
    "unsafe_chunk": lambda x: aten.unsafe_chunk(x, 2, 1),
}


@pytest.mark.parametrize("name", SPLITS)
def test_pieces_of_an_axis_differ_and_the_rest_stays(name):
    (a, b), (x,), gm = axes_of(lambda x: tuple(SPLITS[name](x)), randn(2, 4, 3))
    assert name in {op_name(n) for n in gm.graph.nodes if n.op == "call_function"}
    assert a[0] == b[0] == x[0] and a[2] == b[2] == x[2]
    assert len({a[1], b[1], x[1]}) == 3
    assert kinds(a[1]) == kinds(x[1])


def test_unbound_pieces_lose_the_axis():
    (a, b), (x,), _ = axes_of(lambda x: tuple(x.unbind(1)), randn(3, 2, 4))
    assert a == b == (x[0], x[2])


def test_every_operator_that_splits_has_a_case():
    assert set(operators.SPLITS) == {*SPLITS, "unbind"}


def test_both_results_of_a_maximum_have_the_axes_left():
    (values, where), (x,), _ = axes_of(lambda x: tuple(x.max(1)), X)
    assert values == where == (x[0], x[2])


# --- nearest impostors: what a reader who looks at sizes would take for the same axis


def test_a_view_across_axes_makes_unknown_ones():
    found, _, _ = axes_of(lambda x: x.view(4, 6), X)
    assert [kinds(a) for a in found] == [{"unknown"}, {"unknown"}]


def test_a_view_of_equal_sizes_is_no_transpose():
    found, (x,), _ = axes_of(lambda x: x.reshape(3, 3).t().reshape(3, 3), randn(3, 3))
    assert found == (x[1], x[0])


def test_the_same_cut_is_the_same_axis_and_another_is_not():
    (a, b, c), _, _ = axes_of(lambda x: (x[:, :2] + 0, x[:, :2] * 1, x[:, 1:]), X)
    assert a[1] == b[1] != c[1]


def test_a_slice_of_everything_is_the_axis_itself():
    found, (x,), _ = axes_of(lambda x: x[:, 0:3], X)
    assert found == x


def test_a_convolution_keeps_positions_at_stride_one_alone():
    def twice(stride):
        def run(x, w, u):
            y = F.conv1d(x, w)
            return y, F.conv1d(y, u, stride=stride, padding=1)

        return run

    inputs = randn(2, 4, 8), randn(5, 4, 1), randn(6, 5, 3)
    (one, two), _, _ = axes_of(twice(1), *inputs, weights=2)
    assert one[2] == two[2] and one[1] != two[1]
    (one, two), _, _ = axes_of(twice(2), *inputs, weights=2)
    assert one[2] != two[2] and kinds(two[2]) == {"token"}


def test_a_product_with_an_activation_makes_no_features():
    found, (x, y), _ = axes_of(lambda x, y: x @ y, X, randn(4, 5))
    assert found == (x[0], x[1], y[1])


@pytest.mark.parametrize("equation", ["...td,du->...tu", "btd,du", "btd,du->btu"])
def test_an_einsum_is_read_with_an_ellipsis_and_without_a_result(equation):
    found, (x, _), _ = axes_of(
        lambda x, w: torch.einsum(equation, x, w), X, W.mT.clone(), weights=1
    )
    assert found[:2] == x[:2] and kinds(found[2]) == {"feature"}
