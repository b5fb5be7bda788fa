"""Shared by all tests: a loadable torchvision, a clean Dynamo, quiet third parties."""

import logging
import os
import tempfile

os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("ATTNPASS_CHECK", "1")  # the pass verifies its graph after every stage
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, and so do their processes
os.environ["ATTNPASS_DB"] = os.path.join(tempfile.mkdtemp(), "none.db")  # nothing is pinned
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
import shim
import torch

torch.set_num_threads(1)
shim.torchvision()

for name in ("transformers", "timm", "torch._dynamo", "torch._functorch", "torch.fx"):
    logging.getLogger(name).setLevel(logging.ERROR)


logging.getLogger("torch.__trace").propagate = False


@pytest.fixture(autouse=True)
def fresh():
    """No graph, report, seed or grad mode of one test reaches the next."""
    from attnpass import report

    torch._dynamo.reset()
    report.reset_report()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()
    assert torch.is_grad_enabled()


@pytest.fixture
def through_python():
    """Every call of an operator reaches Python, where a test can watch it."""
    from attnpass.kernels.cpu import launch

    library = launch.library("pointwise")
    serve = (lambda on: None) if isinstance(library, str) else library.serve
    serve(False)
    yield
    serve(True)


@pytest.fixture
def warnings_(caplog):
    caplog.set_level(logging.WARNING, logger="attnpass")

    def read():
        return [r.getMessage() for r in caplog.records if r.name == "attnpass"]

    return read
