"""What is handed to the inner compiler: mode, patches, and inductor itself on a real model."""

from __future__ import annotations

import pytest
import torch
import torch._inductor.compile_fx as inductor

import attnpass
from attnpass.tuner.digits import DigitsViT


@pytest.mark.parametrize("how", ["argument", "option"])
def test_mode_and_patches_reach_inductor(monkeypatch, how):
    seen = []

    def spy(gm, inputs, config_patches=None):
        seen.append(config_patches)
        return gm.forward

    monkeypatch.setattr(inductor, "compile_fx", spy)
    model = DigitsViT(dim=16, depth=1, heads=2).eval()
    from attnpass.backend import attnpass_backend

    options = {"form": "sigmoid", "inductor": {"epilogue_fusion": False}}
    if how == "option":
        fast = torch.compile(
            model, backend="attnpass", options={**options, "mode": "max-autotune-no-cudagraphs"}
        )
    else:
        # torch.compile refuses mode= beside options=: a caller of the backend may give both
        def backend(gm, inputs):
            mode = "max-autotune-no-cudagraphs"
            return attnpass_backend(gm, inputs, mode=mode, options=options)

        fast = torch.compile(model, backend=backend)
    with torch.no_grad():
        fast(torch.rand(2, 1, 32, 32))
    expected = torch._inductor.list_mode_options("max-autotune-no-cudagraphs")
    assert seen == [{**expected, "epilogue_fusion": False}]


def test_mode_alone_reaches_inductor_where_nothing_is_rewritten(monkeypatch):
    seen = []

    def spy(gm, inputs, config_patches=None):
        seen.append(config_patches)
        return gm.forward

    monkeypatch.setattr(inductor, "compile_fx", spy)
    fast = torch.compile(torch.nn.Linear(4, 4), backend="attnpass", mode="max-autotune")
    fast(torch.rand(2, 4))
    assert seen == [torch._inductor.list_mode_options("max-autotune")]


def test_inductor_gives_what_the_capture_gives():
    model, images = DigitsViT(dim=16, depth=2, heads=2).eval(), torch.rand(2, 1, 32, 32)
    plan = attnpass.Plan.create(model, images, form="hydra")
    capture = attnpass.Capture(model).trace(images)
    capture.use(plan)
    fast = torch.compile(model, backend="attnpass", options={"plan": plan, "strict": True})
    attnpass.reset_report()
    with torch.no_grad():
        out, want = fast(images), capture(images)
    assert attnpass.compiled_report().plan == plan.hash
    assert float((out - want).norm() / want.norm()) < 1e-5


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
