"""Options: checked when given, and what of them reaches inductor."""

import pytest
import torch
import torch._inductor.compile_fx as inductor
from compiling import BOUND, build, captured, compiled, data, error, make_plan
from torch._dynamo.exc import BackendCompilerFailed

from attnpass import Plan
from attnpass.errors import OptionError, PlanError
from attnpass.tuner.digits import DigitsViT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"from": "relu"}, "expected options of form, form_options, plan.*got from"),
        ({"form": "linear"}, "expected a form of softmax, sigmoid.*'linear'"),
        ({"form": "relu", "form_options": {"beta": 1}}, "expected options of form relu.*beta"),
        ({"form": "relu", "plan": Plan({})}, "either 'form' or 'plan'.*both"),
        ({"form": "relu", "allow": ["all"]}, "expected 'allow' of other_weights.*all"),
        ({"form": "relu", "mode": "fast"}, "expected 'mode' of default.*'fast'"),
        ({"form": "relu", "inner": "onnx"}, "expected 'inner' of inductor.*'onnx'"),
        (
            {"form": "relu", "sites": ["x.*"], "strict": True},
            "expected a glob that matches.*'x\\.\\*'",
        ),
        ({"plan": 3}, "expected 'plan' to be a Plan or a path, got int"),
        ({"plan": "/no/such/plan.json"}, "expected a plan file at /no/such/plan.json"),
        ({"form_options": {"h": "relu"}}, "expected 'form' beside 'form_options'"),
        ({"form": "relu", "form_options": 3}, "expected"),
        ({"form": "relu", "sites": 3}, "expected"),
        ({"form": "relu", "form_options": {"h": "tanh"}}, "expected h in"),
        ({"form": "relu", "form_options": {"alpha": "x"}}, "expected"),
        ({"form": "skipat", "form_options": {"r": "big"}}, "expected"),
        ({"form": "skipat", "form_options": {"kernel": 4}}, "kernel odd"),
    ],
    ids=lambda x: (
        "" if isinstance(x, str) else next(iter(x)) + "-" + str(list(x.values())[-1])[:9]
    ),
)
def test_wrong_option(options, message):
    """One clear line: OptionError or PlanError, never a bare TypeError, never a silent run."""
    model, x = build(2), data()
    given = {"inner": "eager", **options}
    with pytest.raises(BackendCompilerFailed, match=message) as caught:
        torch.compile(model, backend="attnpass", options=given)(x)
    assert isinstance(caught.value.inner_exception, (OptionError, PlanError))


def test_mode_as_argument_is_checked():
    with pytest.raises(BackendCompilerFailed, match="expected 'mode' of"):
        torch.compile(build(2), backend="attnpass", mode="fast")(data())


def test_plan_from_a_file(tmp_path):
    model, x = build(2), data()
    plan = make_plan(model, x)
    path = plan.save(tmp_path / "plan.json")
    with torch.no_grad():
        got = compiled(model, plan=str(path))(x)
        assert error(got, captured(model, plan, x)(x)) <= BOUND


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
