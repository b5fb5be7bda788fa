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
