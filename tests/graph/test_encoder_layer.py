"""The fused encoder layer, opened, is the attention that training runs."""

import pytest
import torch
from models import (
    POSITIVES,
    Encoder,
)
from models.cases import spelled
from torch import nn

import attnpass
from attnpass.graph.encoder_layer import encoder_layer


def test_equal_heads_from_the_encoder_fast_path_and_from_training():
    """In evaluation PyTorch runs one opaque operator, in training many."""
    model, inputs = Encoder(), POSITIVES[0].inputs()
    training = attnpass.find_sites(model.train(), *inputs).sites
    evaluated = attnpass.find_sites(model.eval(), *inputs).sites
    assert len(training) == len(evaluated) == 1
    assert spelled(training[0]) == spelled(evaluated[0])
    assert training[0].name == evaluated[0].name


def arguments(layer, x):
    """The arguments that ``nn.TransformerEncoderLayer`` gives its fused operator."""
    a = layer.self_attn
    return (
        *(x, a.embed_dim, a.num_heads, a.in_proj_weight, a.in_proj_bias),
        *(a.out_proj.weight, a.out_proj.bias, layer.activation_relu_or_gelu == 2),
        *(layer.norm_first, layer.norm1.eps, layer.norm1.weight, layer.norm1.bias),
        *(layer.norm2.weight, layer.norm2.bias, layer.linear1.weight, layer.linear1.bias),
        *(layer.linear2.weight, layer.linear2.bias),
    )


PAD = torch.zeros(2, 5, dtype=torch.bool)
PAD[1, 3:] = True
LATER = torch.ones(5, 5, dtype=torch.bool).triu(1)


@pytest.mark.parametrize(
    ("mask", "kind"), [(None, None), (LATER, 0), (PAD, 1)], ids=["none", "square", "padding"]
)
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_numbers_are_those_of_the_fused_operator(mask, kind, norm_first, activation):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        8, 2, 16, batch_first=True, norm_first=norm_first, activation=activation
    ).eval()
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        given = arguments(layer, x)
        got = encoder_layer(*given, mask, kind)
        want = torch._transformer_encoder_layer_fwd(*given, mask, kind)
        rows = ~PAD if kind == 1 else slice(None)  # the fused operator leaves padded rows open
        torch.testing.assert_close(got[rows], want[rows], rtol=1e-4, atol=1e-5)
