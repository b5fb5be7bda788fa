"""Hidden states are paired by the weights that read them, in whatever capture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnpass import Capture, Plan
from attnpass.recover.answers import answer
from attnpass.recover.global_loss import GlobalLoss


def test_features_are_paired_by_the_weights_that_read_them():
    """With gradients Dynamo names the nodes of this encoder in another way than without."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    net, x = (
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(),
        torch.randn(2, 6, 16),
    )
    plan, capture = Plan.create(net, x, form="sigmoid"), Capture(net).trace(x)
    objective = GlobalLoss(net, capture, plan, "features", ())
    with torch.no_grad():
        _, features, _ = answer(capture, (x,))
    _, own, _ = answer(objective.student, (x,))
    assert features.keys() == own.keys() and len(own) == 4, "two linear layers in each block"
    hidden = dict[str, Tensor]()
    for i, block in enumerate(net.layers):
        for name in ("linear1", "linear2"):
            at = f"layers.{i}.{name}.weight 1"
            part = getattr(block, name)
            part.register_forward_pre_hook(lambda _, args, at=at: hidden.update({at: args[0]}))
    net(x.requires_grad_())  # with gradients: else a fused kernel runs, and no hook
    assert hidden.keys() == features.keys()
    for at, value in hidden.items():
        torch.testing.assert_close(features[at], value)
