"""Whole models under the lossless plan: `python benchmarks/lossless.py [OUT] [MODEL ...]`.

The rows of models that are not named stay as they are.
`torch.compile(model, backend="attnpass")` without options beside inductor on the model as its
author wrote it, in one process per model and dtype: interleaved calls, medians of the pairwise
ratios, the same compiled model twice as the floor. First every output is compared with the model
in float64, eager: `errors` are relative (norms). `sigmoid` is that form in every layer, a
conversion that needs training; it is here for its speed alone. `openvino`: MiniLM converted by
OpenVINO, where that is installed. `cold`: the first compile of a process of its own, from empty
caches, and the share of it that the pass takes. The model `minilm_torchao` needs torchao.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cpu_attention import Runs, say, timed
from torch import Tensor, nn

from attnpass import environment, fingerprint

ROOT = Path(__file__).resolve().parent.parent
for folder in ("examples", "tests"):
    sys.path.insert(0, str(ROOT / folder))

Built = tuple[nn.Module, tuple[Any, ...]]


def digits() -> Built:
    """The demo's ViT, 257 tokens, batch 16."""
    from attnpass.tuner.digits import task

    found = task()
    return found.model, tuple(found.example)


def minilm(tokens: int = 512, batch: int = 8) -> Built:
    """MiniLM-L6 with its real weights, 512 tokens, batch 8."""
    import minilm as example

    ids = torch.randint(1000, 20000, (batch, tokens))
    return example.encoder(), (ids, torch.ones(batch, tokens, dtype=torch.bool))


def vit_s() -> Built:
    """A ViT-S of transformers on one image of 512 x 512: 1025 tokens."""
    import shim

    shim.torchvision()
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=384,
        num_attention_heads=6,
        intermediate_size=1536,
        image_size=512,
        attn_implementation="sdpa",
    )
    return ViTModel(config, add_pooling_layer=False), (torch.randn(1, 3, 512, 512),)


def bert_eager() -> Built:
    """A BERT of transformers, six layers, attention spelled by hand, 384 tokens, batch 4."""
    import shim

    shim.torchvision()
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        attn_implementation="eager",
    )
    ids = torch.randint(1000, 20000, (4, 384))
    return BertModel(config, add_pooling_layer=False), (ids, torch.ones_like(ids))


class Decoder(nn.Module):
    """Pre-norm decoder blocks like GPT-2's, over embeddings ``[B, T, D]`` and a cache.

    ``cache`` is keys and values ``[layers, 2, B, H, S, d]`` of what was read before, or None.
    """

    def __init__(self, layers: int = 6, width: int = 768, heads: int = 12) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))

    def forward(self, x: Tensor, cache: Tensor | None = None) -> Tensor:
        """``[B, T, D]``."""
        for i, (qkv, out) in enumerate(zip(self.qkv, self.out, strict=True)):
            y = qkv(self.norms[2 * i](x)).unflatten(-1, (3, self.heads, -1))
            q, k, v = y.permute(2, 0, 3, 1, 4).unbind(0)
            if cache is not None:
                k, v = (torch.cat([cache[i, j], new], 2) for j, new in enumerate((k, v)))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
            x = x + out(mixed.transpose(1, 2).flatten(2))
            x = x + self.down[i](F.gelu(self.up[i](self.norms[2 * i + 1](x))))
        return x


def prefill() -> Built:
    """Like GPT-2, half of its layers, 1024 tokens read at once."""
    return Decoder(), (torch.randn(1, 1024, 768),)


def decode() -> Built:
    """The same, one token behind a cache of 4096."""
    return Decoder(), (torch.randn(1, 1, 768), torch.randn(6, 2, 1, 12, 4096, 64))


class Int8(nn.Module):
    """A linear layer of 8-bit weights, one scale per output, by torch's own product."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1) / 127
        weight = (linear.weight.detach() / scale[:, None]).round().to(torch.int8)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.to(linear.weight.dtype))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """``[..., outputs]``."""
        flat = torch.ops.aten._weight_int8pack_mm(x.flatten(0, -2), self.weight, self.scale)
        return flat.unflatten(0, x.shape[:-1]) + self.bias


def minilm_int8() -> Built:
    """MiniLM at 512 tokens, every linear layer with 8-bit weights."""
    model, inputs = minilm()
    model = copy.deepcopy(model).bfloat16()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8(child))
    return model, inputs


def minilm_torchao() -> Built:
    """MiniLM at 512 tokens, linear layers in 8 bits by torchao's dynamic quantisation."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model, inputs = minilm()
    quantize_(model.eval(), Int8DynamicActivationInt8WeightConfig())
    return model, inputs


MODELS: dict[str, Callable[[], Built]] = {
    "digits": digits,
    "minilm": minilm,
    "vit_s": vit_s,
    "bert_eager": bert_eager,
    "prefill": prefill,
    "decode": decode,
    "minilm_int8": minilm_int8,
    "minilm_torchao": minilm_torchao,
}

QUANTISED = {"minilm_int8": ["bfloat16"], "minilm_torchao": ["float32", "bfloat16"]}
"""The models whose linear layers have no float64, and the dtypes in which they run."""


def compiled(model: nn.Module, inputs: Any, backend: Any, **options: Any) -> Any:
    """The compiled model, called once."""
    torch._dynamo.reset()
    run = torch.compile(model, backend=backend, options=options or None)
    with torch.no_grad():
        run(*inputs)
    return run


def made(name: str, dtype: str) -> tuple[nn.Module, list[Any], Tensor]:
    """The model and its inputs in a dtype, and what it gives in float64."""
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    model = model.eval()

    def cast(to: torch.dtype) -> list[Any]:
        return [x.to(to) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]

    kind = getattr(torch, dtype)
    with torch.no_grad():
        if name in QUANTISED:
            if name == "minilm_torchao":
                model = model.to(kind)
            return model, cast(kind), plain(model(*cast(kind))).double()
        exact = plain(copy.deepcopy(model).double()(*cast(torch.float64)))
        return model.to(kind), cast(kind), exact


def openvino(model: nn.Module, inputs: Any, dtype: str) -> Callable[..., Tensor]:
    """The model in OpenVINO, computing in ``dtype``."""
    import openvino

    converted = openvino.convert_model(copy.deepcopy(model).float(), example_input=tuple(inputs))
    hint = {"INFERENCE_PRECISION_HINT": "f32" if dtype == "float32" else "bf16"}
    run = openvino.compile_model(converted, "CPU", hint)
    given = [x.numpy() for x in inputs]

    def call(*_: Any) -> Tensor:
        return torch.from_numpy(run(given)[0])

    return call


def plain(out: Any) -> Tensor:
    """The output as a tensor."""
    found: Tensor = getattr(out, "last_hidden_state", out)
    return found


def one(name: str, dtype: str) -> dict[str, Any]:
    """One model in one dtype."""
    from attnpass import report

    model, inputs, exact = made(name, dtype)
    runs = {"inductor": compiled(model, inputs, "inductor")}
    report.reset_report()
    runs["lossless"] = compiled(model, inputs, "attnpass")
    rewritten = report.compiled_report().rewritten
    assert set(rewritten.values()) <= {"softmax"}
    if name in ("digits", "minilm"):
        runs["sigmoid"] = compiled(model, inputs, "attnpass", form="sigmoid")
    if name == "minilm" and util.find_spec("openvino"):
        runs["openvino"] = openvino(model, inputs, dtype)
    row: dict[str, Any] = {"model": name, "dtype": dtype, "rewritten": len(rewritten)}
    with torch.no_grad():
        row["errors"] = {
            which: float((plain(run(*inputs)).double() - exact).norm() / exact.norm())
            for which, run in runs.items()
        }
        if not row["errors"]["lossless"] <= 1.5 * row["errors"]["inductor"] + 1e-6:
            raise SystemExit(f"{name} {dtype}: errors {row['errors']}")
        calls: Runs = {which: functools.partial(run, *inputs) for which, run in runs.items()}
        return row | timed(calls, 8.0, least=15)


def cold(name: str) -> dict[str, float]:
    """Seconds of the first compile, and of the pass in it."""
    from attnpass import backend
    from attnpass.compiled import graph

    model, inputs, _ = made(name, QUANTISED.get(name, ["float32"])[0])
    spent = {"backend": 0.0, "inner": 0.0}

    def watched(which: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            out = run(*args, **kwargs)
            spent[which] += time.perf_counter() - begun
            return out

        return call

    backend.compile_inner = graph.compile_inner = watched("inner", graph.compile_inner)
    begun = time.perf_counter()
    compiled(model, inputs, watched("backend", backend.attnpass_backend))
    seconds = time.perf_counter() - begun
    spent_in_pass = spent["backend"] - spent["inner"]
    return {"seconds": seconds, "pass": spent_in_pass, "share": spent_in_pass / seconds}


def fresh(*arguments: str) -> Any:
    """What this script prints in a process of its own, from an empty compiler cache."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, __file__, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder},
        )
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = ROOT / "benchmarks/results/lossless_cpu.json"
    parser.add_argument("out", nargs="?", type=Path, default=default)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--one", nargs=2)
    parser.add_argument("--cold")
    given = parser.parse_args()
    if given.one or given.cold:
        print(json.dumps(one(*given.one) if given.one else cold(given.cold)))
        return
    before = json.loads(given.out.read_text())["rows"] if given.out.exists() else []
    rows = [r for r in before if r["model"] not in given.models]
    for name in given.models:
        compile_time = fresh("--cold", name)
        for dtype in QUANTISED.get(name, ["float32", "bfloat16"]):
            about = {"cold": compile_time, "date": time.strftime("%Y-%m-%d")}
            about |= {"kernels": fingerprint.kernels_digest(), "load": os.getloadavg()}
            rows.append({**fresh("--one", name, dtype), **about})
            print(name, rows[-1]["errors"], f"pass {compile_time['share']:.1%}")
            say(rows[-1], *[n for n in ("lossless", "sigmoid", "openvino") if n in rows[-1]])
            found = {
                "command": "python benchmarks/lossless.py",
                "date": time.strftime("%Y-%m-%d"),
                "device": environment.device(),
                "versions": environment.versions(),
                "rows": rows,
            }
            given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
