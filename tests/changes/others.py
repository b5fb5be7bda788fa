"""Data, variables, files, switches, machines and calibration."""

from __future__ import annotations

from changes.change import LOSS, Change


def data(name, setup, *, top="", knob=(1.0, 2.0), **more):
    return Change("data", name, {"setup": setup, "top": top}, knob=knob, **more)


SCALED = LOSS.replace('"none")', '"none") * ({})')


def variable(name, used, top="", before="1", after="2", called="SCALE", **more):
    """A score that reads an environment variable."""
    slots = {"score": SCALED.format(used), "top": top}
    return Change("variable", name, slots, env=({called: before}, {called: after}), **more)


def file(name, used, text, change, *, top="", called="numbers.txt", setup="", **files):
    """A score that reads a file whenever it is called."""
    slots = {"score": SCALED.format(used), "top": top, "setup": setup}
    return Change("file", name, slots, {called: text, **files}, change)


def switch(name, before, after, **more):
    return Change("switch", name, begin=(before, after), **more)


def machine(name, variables):
    return Change("machine", name, env=({}, variables), apart=True)


ONE = ("1.5", "2.5")

OTHERS = [
    data("one value of one item", "x[37, 2, 3] = KNOB"),
    data("one label", "y[37] = int(KNOB)"),
    data("order of the items", "if KNOB > 1:\n    x, y = x.flip(0), y.flip(0)"),
    data("fewer items", "x, y = x[: int(KNOB)], y[: int(KNOB)]", knob=(60.0, 50.0)),
    data("type of the labels", "y = y.int().long() if KNOB > 1 else y"),
    data("precision of the inputs", "x = x.bfloat16().float() if KNOB > 1 else x"),
    data("batches of another size", "size = int(KNOB)", knob=(10.0, 12.0)),
    data(
        "items that are made when read",
        "x = Lazy(x)",
        top="class Lazy:\n    def __init__(self, x):\n        self.x = x\n    def __getitem__(self, i):\n        return self.x[i] * KNOB\n    def split(self, n):\n        return [part * KNOB for part in self.x.split(n)]",
    ),
    data("calibration", "calibration = [(learn * KNOB,)]", calibrates=True),
    data("calibration with more batches", "calibration = [(learn,)] * int(KNOB)", calibrates=True),
    data("recovery, which a calibrating run does not read", "recovery = [(learn * KNOB,)]"),
    variable("os.environ", "float(os.environ['SCALE'])"),
    variable("os.getenv", "float(os.getenv('SCALE', '3'))"),
    variable("read at import", "HELD", "HELD = float(os.environ['SCALE'])"),
    variable("name in a constant", "float(os.environ[NAME])", "NAME = 'SCALE'"),
    variable("name made at run time", "float(os.environ['SCA' + 'LE'])"),
    variable(
        "a variable that appears",
        "float(os.environ.get('SCALE', '3'))",
        called="SCALE",
        after="2",
        before="3",
    ),
    Change(
        "variable",
        "a variable that is set",
        {"score": SCALED.format("float(os.environ.get('SCALE', '3'))")},
        env=({}, {"SCALE": "2"}),
    ),
    Change(
        "variable",
        "a variable that is taken away",
        {"score": SCALED.format("float(os.environ.get('SCALE', '3'))")},
        env=({"SCALE": "2"}, {}),
    ),
    Change(
        "variable",
        "a variable of the model",
        {
            "forward": "x = times(x)",
            "top": "@torch.compiler.disable\ndef times(x):\n    return x * float(os.environ['SCA' + 'LE'])",
        },
        env=({"SCALE": "1"}, {"SCALE": "2"}),
    ),
    file("open", "float(open('numbers.txt').read())", "1.5", ONE),
    file("name made at run time", "float(open('num' + 'bers.txt').read())", "1.5", ONE),
    file(
        "beside the source",
        "float((pathlib.Path(__file__).parent / 'numbers.txt').read_text())",
        "1.5",
        ONE,
        top="import pathlib",
    ),
    file("json", "json.load(open('numbers.txt'))['k']", '{"k": 1.5}', ONE, top="import json"),
    file("numpy.loadtxt", "np.loadtxt('numbers.txt')[()]", "1.5", ONE, top="import numpy as np"),
    file("os.open", "float(os.read(os.open('numbers.txt', os.O_RDONLY), 9))", "1.5", ONE),
    file(
        "mmap",
        "float(mmap.mmap(os.open('numbers.txt', os.O_RDONLY), 0, access=1)[:])",
        "1.5",
        ONE,
        top="import mmap",
    ),
    file(
        "another process reads it",
        "float(subprocess.check_output(['cat', 'numbers.txt']))",
        "1.5",
        ONE,
        top="import subprocess",
    ),
    file(
        "linecache",
        "float(linecache.getline('numbers.txt', 1))",
        "1.5",
        ONE,
        top="import linecache",
    ),
    file("read when loaded", "HELD", "1.5", ONE, top="HELD = float(open('numbers.txt').read())"),
    file(
        "ini",
        "float(read())",
        "[a]\nk=1\n",
        ("k=1", "k=2"),
        top="import configparser\ndef read():\n    c = configparser.ConfigParser()\n    c.read('numbers.txt')\n    return c['a']['k']",
    ),
    Change(
        "file",
        "a file that appears",
        {"score": SCALED.format("2 if os.path.exists('there.txt') else 1")},
        begin=("", "open('there.txt', 'w').close()"),
    ),
    Change(
        "file",
        "a file that appears where it was looked for",
        {
            "score": SCALED.format("numbers()"),
            "top": "def numbers():\n    try:\n        return float(open('th' + 'ere.txt').read())\n"
            "    except FileNotFoundError:\n        return 1.0",
        },
        begin=("", "print(2, file=open('there.txt', 'w'))"),
    ),
    file(
        "one item outside the canary",
        "1 + (output[:, 0] == PICK) * float(open('numbers.txt').read())",
        "1.5",
        ONE,
        top="PICK = None",
        setup="globals()['PICK'] = model(x)[25, 0]",
    ),
    Change(
        "file",
        "file of the model",
        {
            "forward": "x = times(x)",
            "top": "@torch.compiler.disable\ndef times(x):\n    return x * float(open('numbers.txt').read())",
        },
        {"numbers.txt": "1.5"},
        ONE,
    ),
    Change(
        "file",
        "weights that are read when called",
        {
            "forward": "x = times(x)",
            "top": "@torch.compiler.disable\ndef times(x):\n    return x * torch.tensor([float(n) for n in open('w' + '.csv').read().split(',')])",
        },
        {"w.csv": "1,1,1,1,1,1,1,1"},
        ("1,1,1", "1,3,1"),
    ),
    switch("default dtype", "", "torch.set_default_dtype(torch.float64)"),
    switch("matmul precision", "", "torch.set_float32_matmul_precision('medium')"),
    switch("deterministic", "", "torch.use_deterministic_algorithms(True)"),
    switch("threads", "torch.set_num_threads(1)", "torch.set_num_threads(2)"),
    switch("mkldnn", "", "torch.backends.mkldnn.enabled = False"),
    switch("denormals", "", "torch.set_flush_denormal(True)"),
    switch("autocast", "", "torch.set_autocast_enabled('cpu', True)"),
    switch("math attention", "", "torch.backends.cuda.enable_flash_sdp(False)"),
    switch("version of torch", "", "torch.__version__ = torch.torch_version.TorchVersion('9.9')"),
    switch("version of a library", "", "import safetensors; safetensors.__version__ = '9'"),
    machine("ATEN_CPU_CAPABILITY", {"ATEN_CPU_CAPABILITY": "default"}),
    machine("ONEDNN_MAX_CPU_ISA", {"ONEDNN_MAX_CPU_ISA": "SSE41"}),
    machine("MKL_CBWR", {"MKL_CBWR": "COMPATIBLE"}),
    machine("MKL_ENABLE_INSTRUCTIONS", {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}),
]
