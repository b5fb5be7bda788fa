"""Where a model may hold a number or a tensor; only the running task knows it."""

from __future__ import annotations

from changes.change import Change

T = "torch.full((8,), KNOB)"


def model(name, init="", forward="", *, top="", setup="", knob=(1.0, 2.0), **more):
    """A model that uses the knob."""
    slots = {"init": init, "forward": forward, "top": top, "setup": setup}
    return Change("model", name, slots, knob=knob, **more)


MODELS = [
    model("parameter", f"self.k = nn.Parameter({T})", "x = x * self.k"),
    model("buffer", f"self.register_buffer('k', {T})", "x = x * self.k"),
    model(
        "buffer that is not saved",
        f"self.register_buffer('k', {T}, persistent=False)",
        "x = x * self.k",
    ),
    model("tensor attribute", f"self.k = {T}", "x = x * self.k"),
    model("tensor in a list", f"self.k = [{T}]", "x = x * self.k[0]"),
    model("tensor in a dict", f"self.k = {{'a': {T}}}", "x = x * self.k['a']"),
    model(
        "tensor in a plain object",
        f"self.k = Plain()\nself.k.a = {T}",
        "x = x * self.k.a",
        top="class Plain: pass",
    ),
    model(
        "tensor in a named tuple",
        f"self.k = P({T})",
        "x = x * self.k.a",
        top="import collections\nP = collections.namedtuple('P', 'a')",
    ),
    model("global tensor", "", "x = x * K", top=f"K = {T}"),
    model("tensor in a global list", "", "x = x * K[0]", top=f"K = [{T}]"),
    model(
        "tensor in a closure",
        "self.k = make()",
        "x = self.k(x)",
        top=f"def make():\n    k = {T}\n    return lambda x: x * k",
    ),
    model(
        "tensor as a default",
        "self.k = times",
        "x = self.k(x)",
        top=f"def times(x, k={T}):\n    return x * k",
    ),
    model("number attribute", "self.k = KNOB", "x = x * self.k"),
    model("list of numbers", "self.k = [KNOB]", "x = x * self.k[0]"),
    model(
        "numpy array",
        "self.k = np.array([KNOB], dtype=np.float32)",
        "x = x * torch.from_numpy(self.k)",
        top="import numpy as np",
    ),
    model("class attribute", "", "x = x * Held.k", top="class Held:\n    k = KNOB"),
    model(
        "function attribute", "", "x = x * times.k", top="def times():\n    pass\ntimes.k = KNOB"
    ),
    model(
        "property",
        "self.raw = KNOB",
        "x = x * Model.k.fget(self)",
        setup="",
        top="",
    )
    if False
    else model(
        "state of a custom op",
        "",
        "x = torch.ops.task_changes.scaled(x)",
        top="@torch.library.custom_op('task_changes::scaled', mutates_args=())\ndef scaled(x: torch.Tensor) -> torch.Tensor:\n    return x * KNOB\n@scaled.register_fake\ndef _(x):\n    return torch.empty_like(x)",
    ),
    model(
        "state of a disabled function",
        "",
        "x = times(x)",
        top="STATE = [KNOB]\n@torch.compiler.disable\ndef times(x):\n    return x * STATE[0]",
    ),
    model(
        "hook's closure",
        setup="model.head.register_forward_hook((lambda k: lambda m, a, out: out * k)(KNOB))",
    ),
    model(
        "pre-hook",
        setup="model.head.register_forward_pre_hook((lambda k: lambda m, a: (a[0] * k,))(KNOB))",
    ),
    model(
        "forward replaced in an object",
        setup="model.head.forward = (lambda f, k: lambda x: f(x) * k)(model.head.forward, KNOB)",
    ),
    model(
        "parametrization",
        setup="nn.utils.parametrize.register_parametrization(model.head, 'weight', Scale(KNOB))",
        top="import torch.nn.utils.parametrize\nclass Scale(nn.Module):\n    def __init__(self, k):\n        super().__init__()\n        self.k = k\n    def forward(self, w):\n        return w * self.k",
    ),
    model("epsilon of a norm", "self.norm = nn.LayerNorm(8, eps=KNOB)", "x = self.norm(x)"),
    model(
        "slope of an activation",
        "self.act = nn.LeakyReLU(KNOB)",
        "x = self.act(x)",
        knob=(0.1, 0.5),
    ),
    model(
        "order of layers",
        "self.a, self.b = nn.Tanh(), nn.ReLU()\nself.k = KNOB",
        "x = self.b(self.a(x)) if self.k < 2 else self.a(self.b(x))",
    ),
    model(
        "branch that the example does not take",
        "self.k = [KNOB]",
        "if x.shape[0] > 5:\n    x = x * self.k[0]",
    ),
    model("weights trained further", setup="model.head.bias.data[0] += KNOB"),
    model(
        "module of a container",
        "self.k = nn.ModuleList([nn.Identity(), nn.Tanh()])\nself.which = int(KNOB)",
        "x = self.k[self.which](x)",
        knob=(0.0, 1.0),
    ),
    model("attention's scale", setup="model.attn.qkv.weight.data *= KNOB"),
    model(
        "dropout p, which is off",
        "self.drop = nn.Dropout(KNOB)",
        "x = self.drop(x)",
        knob=(0.1, 0.2),
    ),
    model("attribute that nothing reads", "self.note = KNOB"),
    model("name of the task's metric", setup="score.note = KNOB"),
]
