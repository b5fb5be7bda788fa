"""How many attentions a model really computes: counted while it runs, without any graph.

A dispatch mode follows tensors: a product of two activations is *scores*; what softmax makes of
scores is *weights*; a product that reads weights is one attention. Fused attention counts once.
"""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

FUSED = (
    "scaled_dot_product",
    "_transformer_encoder_layer_fwd",
    "_native_multi_head_attention",
    "_flash_attention_forward",
    "_efficient_attention_forward",
)
PRODUCTS = {"bmm": (0, 1), "mm": (0, 1), "baddbmm": (1, 2), "addmm": (1, 2), "addbmm": (1, 2)}
SOFTMAX = ("_softmax", "_safe_softmax")


class Truth(TorchDispatchMode):
    """Counts attention computations of everything that runs inside.

    Attributes:
        attention: computations found. other: softmaxes that are none.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.tags: WeakIdKeyDictionary = WeakIdKeyDictionary()
        for tensor in (*model.parameters(), *model.buffers()):
            self.tags[tensor] = "parameter"
        self.used: set[int] = set()
        self.softmaxes = 0
        self.fused = 0

    @property
    def attention(self) -> int:
        return self.fused + len(self.used)

    @property
    def other(self) -> int:
        return self.softmaxes - len(self.used)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        out = func(*args, **(kwargs or {}))
        first = out[0] if isinstance(out, (tuple, list)) and out else out
        if not isinstance(first, torch.Tensor):
            return out
        if any(name.startswith(x) or name.startswith("_" + x) for x in FUSED):
            self.fused += 1
            return out
        if name in PRODUCTS:
            self._product(first, [args[i] for i in PRODUCTS[name]])
            return out
        tags = [self.tags.get(x) for x in _tensors(args)]
        if name in SOFTMAX:
            self.softmaxes += 1
            if self.tags.get(args[0]) == "scores":
                self.tags[out] = ("weights", self.softmaxes)
            return out
        self._inherit(out, name, tags)
        return out

    def _product(self, out, operands) -> None:
        tags = [self.tags.get(x) for x in operands]
        for tag in tags:
            if isinstance(tag, tuple):
                self.used.add(tag[1])
        if "parameter" not in tags:
            self.tags[out] = "scores"

    def _inherit(self, out, name, tags) -> None:
        known = [t for t in tags if t is not None]
        if not known or name in ("convolution", "native_layer_norm", "native_group_norm"):
            return
        if tags and all(t == "parameter" for t in tags):
            tag = "parameter"
        else:
            rest = [t for t in known if t != "parameter"]
            if not rest:
                return
            tag = next((t for t in rest if isinstance(t, tuple)), rest[0])
        for x in _tensors([out]):
            self.tags[x] = tag


def _tensors(args):
    for x in args:
        if isinstance(x, torch.Tensor):
            yield x
        elif isinstance(x, (list, tuple)):
            yield from _tensors(x)
