"""Changes to the text of the task's helpers, in every way in which Python reaches a text."""

from __future__ import annotations

from changes.change import Change

HELPER = """
import torch

LIMIT = 3
def metric(output, target):
    return (output.argmax(1) == target).double()
"""

USES = "def score(output, target):\n    return helper.metric(output, target)"
ARG = ("argmax", "argmin")
LOADED = (
    "import importlib, importlib.util, sys, pathlib\n"
    "sys.path.insert(0, str(pathlib.Path(__file__).parent))"
)


def helper(name, text, call, *, top="import helper", change=ARG, files=None):
    """A helper of this text that the score calls."""
    score = f"def score(output, target):\n    {call}"
    texts = {"helper.py": text, **(files or {})}
    return Change("source", name, {"top": top, "score": score}, texts, change)


CALL = "return helper.metric(output, target)"
METRIC = "(output.argmax(1) == target).double()"

SOURCES = [
    helper("function", HELPER, CALL),
    helper("alias", HELPER, "return h.metric(output, target)", top="import helper as h"),
    helper("name", HELPER, "return metric(output, target)", top="from helper import metric"),
    helper("star", HELPER, "return metric(output, target)", top="from helper import *"),
    helper("constant", HELPER, "return (target < helper.LIMIT).double()", change=("= 3", "= 4")),
    helper(
        "imported constant",
        HELPER,
        "return (target < LIMIT).double()",
        top="from helper import LIMIT",
        change=("= 3", "= 4"),
    ),
    helper(
        "class",
        f"class Metric:\n    def __call__(self, output, target):\n        return {METRIC}\n",
        "return helper.Metric()(output, target)",
    ),
    helper(
        "inherited method",
        "import deeper\nclass Metric(deeper.Base):\n    pass\n",
        "return helper.Metric().metric(output, target)",
        files={
            "deeper.py": f"class Base:\n    def metric(self, output, target):\n        return {METRIC}\n"
        },
    ),
    helper(
        "two imports away",
        "import deeper\ndef metric(output, target):\n    return deeper.metric(output, target)\n",
        CALL,
        files={"deeper.py": HELPER},
    ),
    helper(
        "relative import",
        "",
        "return metric(output, target)",
        top="from pack.inner import metric",
        files={
            "pack/__init__.py": "",
            "pack/inner.py": "from .other import metric\n",
            "pack/other.py": HELPER,
        },
    ),
    helper(
        "init of a package",
        "",
        "return inner.metric(output, target)",
        top="from pack import inner",
        files={
            "pack/__init__.py": "PICK = 'argmax'\n",
            "pack/inner.py": "import pack\ndef metric(output, target):\n"
            "    return (getattr(output, pack.PICK)(1) == target).double()\n",
            "pack/other.py": HELPER,
        },
    ),
    helper("import when called", HELPER, f"import helper\n    {CALL}", top=""),
    helper(
        "from-import when called",
        HELPER,
        "from helper import metric\n    return metric(output, target)",
        top="",
    ),
    helper(
        "importlib",
        HELPER,
        CALL,
        top='import importlib\nhelper = importlib.import_module("helper")',
    ),
    helper(
        "a name made at run time",
        HELPER,
        'return importlib.import_module("hel" + "per").metric(output, target)',
        top="import importlib",
    ),
    helper("__import__", HELPER, CALL, top='helper = __import__("hel" + "per")'),
    helper("getattr", HELPER, 'return getattr(helper, "met" + "ric")(output, target)'),
    helper(
        "globals",
        HELPER,
        'return globals()["met" + "ric"](output, target)',
        top="from helper import metric",
    ),
    helper(
        "sys.modules",
        HELPER,
        'return sys.modules["helper"].metric(output, target)',
        top="import sys, helper",
    ),
    helper(
        "loaded by its path",
        HELPER,
        CALL,
        top=LOADED
        + '\nspec = importlib.util.spec_from_file_location("made_up", pathlib.Path(__file__).parent / "helper.py")\n'
        "helper = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(helper)",
    ),
    helper(
        "exec of a file",
        HELPER,
        "return metric(output, target)",
        top='exec(open("helper.py").read())',
    ),
    helper(
        "exec of a file when called",
        HELPER,
        'space = {}\n    exec(open("hel" + "per.py").read(), space)\n    return space["metric"](output, target)',
        top="",
    ),
    helper("eval of a text", f'TEXT = "{METRIC}"\n', "return eval(helper.TEXT)"),
    helper(
        "default argument",
        "def metric(output, target, k='argmax'):\n    return (getattr(output, k)(1) == target).double()\n",
        CALL,
    ),
    helper(
        "keyword default",
        "def metric(output, target, *, k='argmax'):\n    return (getattr(output, k)(1) == target).double()\n",
        CALL,
    ),
    helper(
        "decorator",
        "import functools\ndef wrap(f):\n    @functools.wraps(f)\n    def inner(*a):\n        return f(*a) * 2\n    return inner\n",
        "return metric(output, target)",
        top=f"from helper import wrap\n@wrap\ndef metric(output, target):\n    return {METRIC}",
        change=("* 2", "* 3"),
    ),
    helper(
        "inner function",
        f"def metric(output, target):\n    def pick():\n        return {METRIC}\n    return pick()\n",
        CALL,
    ),
    helper("lambda", f"metric = lambda output, target: {METRIC}\n", CALL),
    helper(
        "generator function",
        "def rows(output):\n    for row in output:\n        yield row.argmax()\n",
        "return torch.stack(list(helper.rows(output))).double()",
    ),
    helper(
        "property",
        "class M:\n    @property\n    def pick(self):\n        return 'argmax'\n",
        "return (getattr(output, helper.M().pick)(1) == target).double()",
    ),
    helper(
        "static method",
        f"class M:\n    @staticmethod\n    def metric(output, target):\n        return {METRIC}\n",
        "return helper.M.metric(output, target)",
    ),
    helper(
        "class method",
        f"class M:\n    @classmethod\n    def metric(cls, output, target):\n        return {METRIC}\n",
        "return helper.M.metric(output, target)",
    ),
    helper(
        "metaclass",
        f"class Meta(type):\n    def __call__(cls, output, target):\n        return {METRIC}\nclass M(metaclass=Meta):\n    pass\n",
        "return helper.M(output, target)",
    ),
    helper(
        "dataclass default",
        "import dataclasses\n@dataclasses.dataclass\nclass M:\n    pick: str = 'argmax'\n",
        "return (getattr(output, helper.M().pick)(1) == target).double()",
    ),
    helper(
        "enum",
        "import enum\nclass M(enum.Enum):\n    PICK = 'argmax'\n",
        "return (getattr(output, helper.M.PICK.value)(1) == target).double()",
    ),
    helper(
        "named tuple default",
        "from typing import NamedTuple\nclass M(NamedTuple):\n    pick: str = 'argmax'\n",
        "return (getattr(output, helper.M().pick)(1) == target).double()",
    ),
    helper(
        "module's __getattr__",
        f"def __getattr__(name):\n    if name != 'metric':\n        raise AttributeError(name)\n    return lambda output, target: {METRIC}\n",
        CALL,
    ),
    helper(
        "try import",
        HELPER,
        CALL,
        top="try:\n    import not_there as helper\nexcept ImportError:\n    import helper",
    ),
    helper(
        "jit script",
        "import torch\n@torch.jit.script\ndef metric(output: torch.Tensor, target: torch.Tensor):\n    return (output.argmax(1) == target).double()\n",
        CALL,
    ),
    helper(
        "type comment of a script",
        "import torch\n@torch.jit.script\ndef pick(x, k):\n    # type: (torch.Tensor, float) -> torch.Tensor\n    return x * k / 2\n",
        "return helper.pick(output[:, 0], 3)",
        change=("k / 2", "k / 3"),
    ),
    Change(
        "source",
        "forward in another module",
        {"top": "import helper", "forward": "x = helper.mix(x)"},
        {"helper.py": "def mix(x):\n    return x * 2.0\n"},
        ("2.0", "3.0"),
    ),
    Change(
        "source",
        "branch that the example does not take",
        {"top": "import helper", "forward": "x = helper.mix(x)"},
        {
            "helper.py": "def mix(x):\n    if x.shape[0] > 5:\n        return x * 2.0\n    return x\n"
        },
        ("2.0", "3.0"),
    ),
    Change(
        "source",
        "body of a custom op",
        {"top": "import helper", "forward": "x = helper.mix(x)"},
        {
            "helper.py": "import torch\n@torch.library.custom_op('task_changes::mix', mutates_args=())\n"
            "def mix(x: torch.Tensor) -> torch.Tensor:\n    return x * 2.0\n"
            "@mix.register_fake\ndef _(x):\n    return torch.empty_like(x)\n"
        },
        ("2.0", "3.0"),
    ),
    Change(
        "source",
        "body of a disabled function",
        {"top": "import helper", "forward": "x = helper.mix(x)"},
        {"helper.py": "import torch\n@torch.compiler.disable\ndef mix(x):\n    return x * 2.0\n"},
        ("2.0", "3.0"),
    ),
    Change(
        "source",
        "base class of the model's part",
        {
            "top": "import helper",
            "init": "self.part = helper.Part()",
            "forward": "x = self.part(x)",
        },
        {
            "helper.py": "import deeper\nclass Part(deeper.Base):\n    pass\n",
            "deeper.py": "from torch import nn\nclass Base(nn.Module):\n    def forward(self, x):\n        return x * 2.0\n",
        },
        ("2.0", "3.0"),
    ),
    Change(
        "source",
        "hook in another module",
        {"top": "import helper", "setup": "model.head.register_forward_hook(helper.hook)"},
        {"helper.py": "def hook(module, args, out):\n    return out * 2.0\n"},
        ("2.0", "3.0"),
    ),
    Change(
        "source",
        "data made in another module",
        {"top": "import helper", "setup": "y = helper.labels(y)"},
        {"helper.py": "def labels(y):\n    return (y + 1) % 5\n"},
        ("+ 1", "+ 2"),
    ),
    helper("comment", HELPER, CALL, change=("LIMIT", "# nothing\nLIMIT")),
    helper("unused constant", HELPER, CALL, change=("= 3", "= 4")),
    helper(
        "local name",
        "def metric(output, target):\n    one = output.argmax(1)\n    return (one == target).double()\n",
        CALL,
        change=("one", "two"),
    ),
]
