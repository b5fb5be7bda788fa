"""An attention that changes its form from call to call, or falls back, is said once or raised."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.config as dynamo
from compiling import build, compiled, data
from torch import nn

from attnpass.errors import PlanError


def raised(error) -> str:
    """The message of an error, inside Dynamo's own or not."""
    return str(getattr(error.value, "inner_exception", error.value))


class Sometimes(nn.Module):
    """Attention whose logits go through an operator that no reader knows, if asked to."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(24, 72)

    def forward(self, x, odd=False):
        q, k, v = self.qkv(x).chunk(3, -1)
        s = q @ k.mT * 0.2
        return (s.cumsum(-1) if odd else s).softmax(-1) @ v


def run(strict):
    torch._dynamo.reset()
    model = compiled(Sometimes().eval(), form="sigmoid", strict=strict)
    with torch.no_grad():
        model(data())
        model(data(), odd=True)
        model(data(1), odd=True)


def test_a_form_that_comes_and_goes_is_said_once(caplog):
    run(strict=False)
    told = [r.getMessage() for r in caplog.records if "as in an earlier call" in r.getMessage()]
    assert len(told) == 1 and "run as sigmoid" in told[0] and "UNKNOWN_SCORE_OP" in told[0]


def test_strict_raises_it():
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as error:
        run(strict=True)
    assert isinstance(error.value.inner_exception, PlanError)
    assert "got softmax in this one" in raised(error)


def test_lengths_and_batches_change_nothing(caplog):
    torch._dynamo.reset()
    model = compiled(build(2), form="sigmoid", strict=True)
    with torch.no_grad():
        for tokens in (5, 6, 9):
            model(data(tokens, tokens))
    assert "earlier call" not in caplog.text


@pytest.mark.parametrize("strict", [False, True])
def test_the_limit_of_recompiles_is_said_or_raised(strict, caplog):
    torch._dynamo.reset()
    caplog.set_level("WARNING", logger="torch._dynamo.convert_frame")
    options = {"form": "sigmoid", "inner": "eager", "strict": strict}
    run = torch.compile(build(1), backend="attnpass", options=options, dynamic=False)

    def calls():
        with torch.no_grad(), dynamo.patch(recompile_limit=2):
            for tokens in range(2, 7):
                run(data(1, tokens))

    if strict:
        with pytest.raises(PlanError, match=r"blocks\.0\.attn runs unchanged"):
            calls()
    else:
        calls()
        assert caplog.text.count("blocks.0.attn runs unchanged from now on") == 1
