"""Objects that a score holds, each with a number in it that only the running task knows."""

from __future__ import annotations

from changes.change import LOSS, Change


def held(name, made, used="float(HELD)", before="", knob=(1.0, 2.0)):
    """A score that uses an object: ``made`` holds the knob, ``used`` is a number of it."""
    score = f"""def score(output, target):
    return F.cross_entropy(output, target, reduction="none") * ({used})"""
    return Change("object", name, {"top": f"{before}\nHELD = {made}", "score": score}, knob=knob)


def function(name, text, call="by(output)"):
    """A function that the score calls; ``text`` defines ``by``."""
    score = f"{LOSS.replace('score', 'loss')}\n\n\n{text}\n\n\ndef score(output, target):\n    return {call} * loss(output, target)"
    return Change("function", name, {"score": score}, knob=(1.0, 2.0))


OBJECTS = [
    held("int", "int(KNOB)"),
    held("float", "KNOB"),
    held("complex", "complex(0, KNOB)", "HELD.imag"),
    held("str", "str(KNOB)"),
    held("bytes", "bytes([int(KNOB)])", "HELD[0]"),
    held("bytearray", "bytearray([int(KNOB)])", "HELD[0]"),
    held("memoryview", "memoryview(bytes([int(KNOB)]))", "HELD[0]"),
    held("bool", "KNOB > 1", "HELD + 1"),
    held("long int", "10 ** (5000 + int(KNOB))", "HELD % 7"),
    held("range", "range(0, 4 + int(KNOB))", "len(HELD)"),
    held("slice", "slice(0, int(KNOB))", "HELD.stop"),
    held("tuple", "(1, KNOB)", "HELD[1]"),
    held("nested list", "[[1], [2, [KNOB]]]", "HELD[1][1][0]"),
    held("dict", "{'k': KNOB}", "HELD['k']"),
    held(
        "order of a dict",
        "dict([(1, 1), (2, 2)][:: int(KNOB)])",
        "next(iter(HELD))",
        knob=(1.0, -1.0),
    ),
    held("set", "{1, 2, int(KNOB) + 5}", "max(HELD)"),
    held("frozenset", "frozenset([int(KNOB)])", "max(HELD)"),
    held("deque", "collections.deque([KNOB], maxlen=3)", "HELD[0]", "import collections"),
    held(
        "defaultdict", "collections.defaultdict(lambda: KNOB)", "HELD['x']", "import collections"
    ),
    held("OrderedDict", "collections.OrderedDict(k=KNOB)", "HELD['k']", "import collections"),
    held("Counter", "collections.Counter({'k': int(KNOB)})", "HELD['k']", "import collections"),
    held("ChainMap", "collections.ChainMap({'k': KNOB})", "HELD['k']", "import collections"),
    held("UserDict", "collections.UserDict(k=KNOB)", "HELD['k']", "import collections"),
    held("namedtuple", "collections.namedtuple('P', 'k')(KNOB)", "HELD.k", "import collections"),
    held("mappingproxy", "types.MappingProxyType({'k': KNOB})", "HELD['k']", "import types"),
    held("SimpleNamespace", "types.SimpleNamespace(k=KNOB)", "HELD.k", "import types"),
    held("Decimal", "decimal.Decimal(int(KNOB))", before="import decimal"),
    held("Fraction", "fractions.Fraction(int(KNOB), 3)", before="import fractions"),
    held("timedelta", "datetime.timedelta(seconds=KNOB)", "HELD.seconds", "import datetime"),
    held("Path", "pathlib.Path('a' * int(KNOB))", "len(HELD.name)", "import pathlib"),
    held("UUID", "uuid.UUID(int=int(KNOB))", "HELD.int", "import uuid"),
    held("array", "array.array('d', [KNOB])", "HELD[0]", "import array"),
    held("Struct", "struct.Struct('b' * int(KNOB))", "HELD.size", "import struct"),
    held("ctypes", "ctypes.c_double(KNOB)", "HELD.value", "import ctypes"),
    held("re.Pattern", "re.compile('a' * int(KNOB))", "len(HELD.pattern)", "import re"),
    held("re flags", "re.compile('a', int(KNOB) * 8)", "HELD.flags", "import re"),
    held("itemgetter", "operator.itemgetter(int(KNOB))", "HELD([1, 2, 3])", "import operator"),
    held(
        "attrgetter",
        "operator.attrgetter('real' if KNOB < 2 else 'imag')",
        "HELD(1 + 2j)",
        "import operator",
    ),
    held(
        "methodcaller",
        "operator.methodcaller('count', 'a' * int(KNOB))",
        "HELD('aaaa')",
        "import operator",
    ),
    held("partial", "functools.partial(max, KNOB)", "HELD(0)", "import functools"),
    held(
        "partial keywords",
        "functools.partial(int, base=7 + int(KNOB))",
        "HELD('10')",
        "import functools",
    ),
    held(
        "lru_cache",
        "functools.lru_cache((lambda k: lambda x: k * x)(KNOB))",
        "HELD(1)",
        "import functools",
    ),
    held("iterator", "iter([KNOB] * 1000)", "next(HELD)"),
    held("itertools.repeat", "itertools.repeat(KNOB)", "next(HELD)", "import itertools"),
    held("generator", "(KNOB for _ in range(1000))", "next(HELD)"),
    held("StringIO", "io.StringIO(str(KNOB))", "float(HELD.getvalue())", "import io"),
    held(
        "ContextVar",
        "contextvars.ContextVar('k', default=KNOB)",
        "HELD.get()",
        "import contextvars",
    ),
    held("threading.local", "threading.local()\nHELD.k = KNOB", "HELD.k", "import threading"),
    held(
        "weakref",
        "weakref.ref(STRONG)",
        "HELD().k",
        "import weakref, types\nclass Plain: pass\nSTRONG = Plain()\nSTRONG.k = KNOB",
    ),
    held(
        "enum member",
        "E.A if KNOB < 2 else E.B",
        "HELD.value",
        "import enum\nclass E(enum.Enum):\n    A = 1\n    B = 2",
    ),
    held(
        "dataclass",
        "D(KNOB)",
        "HELD.k",
        "import dataclasses\n@dataclasses.dataclass\nclass D:\n    k: float",
    ),
    held(
        "slots",
        "S(KNOB)",
        "HELD.k",
        "class S:\n    __slots__ = ('k',)\n    def __init__(self, k):\n        self.k = k",
    ),
    held(
        "state that is not pickled",
        "H(KNOB)",
        "HELD.k",
        "class H:\n    def __init__(self, k):\n        self.k = k\n    def __getstate__(self):\n        return {}",
    ),
    held("list subclass", "L([KNOB])", "HELD[0]", "class L(list): pass"),
    held("attribute of a dict subclass", "L()\nHELD.k = KNOB", "HELD.k", "class L(dict): pass"),
    held("int subclass", "I(int(KNOB))", "int(HELD)", "class I(int): pass"),
    held("str subclass", "I(str(KNOB))", "float(HELD)", "class I(str): pass"),
    held(
        "object in an object",
        "P()\nHELD.a = P()\nHELD.a.b = [KNOB]",
        "HELD.a.b[0]",
        "class P: pass",
    ),
    held("a long chain", "None\nfor _ in range(3000):\n    HELD = [HELD, KNOB]", "HELD[1]"),
    held("a circle", "[KNOB]\nHELD.append(HELD)", "HELD[1][0]"),
    held(
        "object with a lock",
        "P()\nHELD.lock, HELD.k = threading.Lock(), KNOB",
        "HELD.k",
        "import threading\nclass P: pass",
    ),
    held("tensor", "torch.tensor(KNOB)"),
    held("tensor in a list", "[torch.tensor(KNOB)]", "HELD[0]"),
    held("attribute of a tensor", "torch.zeros(1)\nHELD.k = KNOB", "HELD.k"),
    held("sparse tensor", "torch.eye(2).mul(KNOB).to_sparse()", "HELD.to_dense()[0, 0]"),
    held(
        "conjugate view",
        "torch.tensor([1 + 2j])\nHELD = HELD.conj() if KNOB > 1 else HELD",
        "HELD.imag[0]",
    ),
    held("meta tensor", "torch.empty(int(KNOB), device='meta')", "HELD.shape[0]"),
    held(
        "tensor subclass",
        "torch.tensor(KNOB).as_subclass(T)",
        "HELD.k()",
        "class T(torch.Tensor):\n    def k(self):\n        return float(self)",
    ),
    held("torch.Size", "torch.Size([int(KNOB)])", "HELD[0]"),
    held("dtype", "torch.float32 if KNOB < 2 else torch.float64", "HELD.itemsize"),
    held("numpy array", "np.array([KNOB])", "HELD[0]", "import numpy as np"),
    held(
        "large numpy array",
        "np.zeros(5000)\nHELD[2500] = KNOB",
        "HELD.sum()",
        "import numpy as np",
    ),
    held("numpy scalar", "np.float64(KNOB)", before="import numpy as np"),
    held(
        "object array",
        "np.array([[KNOB], None], dtype=object)",
        "HELD[0][0]",
        "import numpy as np",
    ),
    held(
        "structured array",
        "np.array([(KNOB,)], dtype=[('k', 'f8')])",
        "HELD['k'][0]",
        "import numpy as np",
    ),
    held(
        "masked array",
        "np.ma.masked_array([1.0, 5.0], [False, KNOB > 1])",
        "HELD.sum()",
        "import numpy as np",
    ),
    held(
        "numpy generator",
        "int(KNOB)",
        "np.random.Generator(B(HELD)).random()",
        "import numpy as np\nB = np.random.PCG64",
    ),
    held(
        "state of a numpy generator",
        "np.random.default_rng(int(KNOB))",
        "copy.deepcopy(HELD).random()",
        "import copy, numpy as np",
    ),
    held(
        "RandomState",
        "np.random.RandomState(int(KNOB))",
        "copy.deepcopy(HELD).rand()",
        "import copy, numpy as np",
    ),
    held(
        "random.Random",
        "random.Random(int(KNOB))",
        "copy.deepcopy(HELD).random()",
        "import copy, random",
    ),
    held(
        "torch.Generator",
        "torch.Generator().manual_seed(int(KNOB))",
        "torch.rand(1, generator=HELD.clone_state())",
        "",
    ),
    held(
        "label smoothing",
        "nn.CrossEntropyLoss(label_smoothing=0.1 * KNOB, reduction='none')",
        "HELD(output, target)",
    ),
    held(
        "weights of a layer",
        "nn.Linear(1, 1)\nnn.init.constant_(HELD.weight, KNOB)",
        "HELD.weight.item()",
    ),
    held(
        "buffer that is not saved",
        "nn.Identity()\nHELD.register_buffer('k', torch.tensor(KNOB), persistent=False)",
        "HELD.k.item()",
    ),
    held(
        "script",
        "torch.jit.script(M(KNOB))",
        "HELD(output[0, 0])",
        "class M(nn.Module):\n    def __init__(self, k: float):\n        super().__init__()\n        self.k = k\n    def forward(self, x):\n        return x * 0 + self.k",
    ),
    held(
        "traced function",
        "torch.jit.trace(lambda x: x * 0 + KNOB, torch.ones(()))",
        "HELD(output[0, 0])",
    ),
    held("open file", "open(__file__)\n_ = HELD.read(int(KNOB))", "HELD.tell()"),
]

FUNCTIONS = [
    function("closure", "def make(k):\n    return lambda output: k\n\n\nby = make(KNOB)"),
    function("default argument", "def by(output, k=KNOB):\n    return k"),
    function("keyword default", "def by(output, *, k=KNOB):\n    return k"),
    function("function attribute", "def by(output):\n    return by.k\n\n\nby.k = KNOB"),
    function(
        "bound method",
        "class M:\n    def of(self, output):\n        return self.k\n\n\nm = M()\nm.k = KNOB\nby = m.of",
    ),
    function(
        "class attribute",
        "class M:\n    k = KNOB\n    def __call__(self, output):\n        return self.k\n\n\nby = M()",
    ),
    function(
        "class attribute set later",
        "class M:\n    k = 0\n    def __call__(self, output):\n        return type(self).k\n\n\nM.k = KNOB\nby = M()",
    ),
    function(
        "attribute of a base class",
        "class B:\n    k = KNOB\n\n\nclass M(B):\n    def __call__(self, output):\n        return self.k\n\n\nby = M()",
    ),
    function(
        "class method",
        "class M:\n    k = KNOB\n    @classmethod\n    def of(cls, output):\n        return cls.k\n\n\nby = M.of",
    ),
    function(
        "cached property",
        "import functools\n\n\nclass M:\n    def __init__(self):\n        self.raw = [KNOB]\n    @functools.cached_property\n    def k(self):\n        return self.raw[0]\n\n\nm = M()\nby = lambda output: m.k",
    ),
    function(
        "singledispatch",
        "import functools\n\n\n@functools.singledispatch\ndef by(x):\n    return 0\n\n\nby.register(torch.Tensor, (lambda k: lambda x: k)(KNOB))",
    ),
    function(
        "wrapped by functools",
        "import functools\n\n\ndef wrap(f, k):\n    @functools.wraps(f)\n    def inner(*a):\n        return k\n    return inner\n\n\nby = wrap(torch.relu, KNOB)",
    ),
    function(
        "global of a global function",
        "K = [KNOB]\ndef inner():\n    return K[0]\ndef by(output):\n    return inner()",
    ),
    function(
        "name made at run time",
        "SECRET = KNOB\ndef by(output):\n    return globals()['SEC' + 'RET']",
    ),
    function(
        "vars of a class",
        "class M:\n    pass\n\n\nsetattr(M, 'a' + 'b', KNOB)\ndef by(output):\n    return vars(M)['ab']",
    ),
    function(
        "function of another name space",
        "space = {}\nexec('K = %r\\ndef by(output): return K' % KNOB, space)\nby = space['by']",
    ),
    function(
        "code replaced",
        "def by(output):\n    return 1\n\n\nif KNOB > 1:\n    by.__code__ = (lambda output: 2).__code__",
    ),
    function(
        "method replaced in an object",
        "class M:\n    def of(self, output):\n        return 1\n\n\nm = M()\nif KNOB > 1:\n    m.of = lambda output: 2\ndef by(output):\n    return m.of(output)",
    ),
    function(
        "function replaced in another module",
        "import json\n\n\njson.mine = KNOB\ndef by(output):\n    return json.mine",
    ),
]
