"""The fused inference path of ``nn.TransformerEncoderLayer``, spelled in primitives."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from attnpass.torch_internals import current_meta


class _in_submodule:
    """Records the nodes made inside as if they stood in a submodule of the current one."""

    def __init__(self, name: str, kind: type) -> None:
        self.name, self.kind = name, kind

    def __enter__(self) -> None:
        meta = current_meta()
        self.before = meta.get("nn_module_stack")
        if self.before:
            path = f"{list(self.before.values())[-1][0]}.{self.name}"
            meta["nn_module_stack"] = {**self.before, f"attnpass_{path}": (path, self.kind)}

    def __exit__(self, *_: object) -> None:
        if self.before:
            current_meta()["nn_module_stack"] = self.before


def encoder_layer(
    src: Tensor,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Tensor,
    norm_bias_1: Tensor,
    norm_weight_2: Tensor,
    norm_bias_2: Tensor,
    ffn_weight_1: Tensor,
    ffn_bias_1: Tensor,
    ffn_weight_2: Tensor,
    ffn_bias_2: Tensor,
    mask: Tensor | None = None,
    mask_type: int | None = None,
) -> Tensor:
    """``torch._transformer_encoder_layer_fwd`` (the eval fast path) in primitives, ``[B, N, D]``.

    ``mask`` is True where *not* attended: ``[N, N]`` (type 0), ``[B, N]`` (1) or both merged.
    """

    def attend(x: Tensor) -> Tensor:
        sizes = (3, num_heads, embed_dim // num_heads)
        qkv = F.linear(x, qkv_weight, qkv_bias).unflatten(-1, sizes)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, H, N, d]
        keep = None if mask is None else mask.logical_not()
        if keep is not None and mask_type == 1:
            keep = keep[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
        return F.linear(out.transpose(1, 2).flatten(2), proj_weight, proj_bias)

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, (embed_dim,), weight, bias, eps)

    def feed(x: Tensor) -> Tensor:
        hidden = F.linear(x, ffn_weight_1, ffn_bias_1)
        hidden = F.gelu(hidden) if use_gelu else F.relu(hidden)
        return F.linear(hidden, ffn_weight_2, ffn_bias_2)

    if norm_first:
        src = src + attend(norm(src, norm_weight_1, norm_bias_1))
        return src + feed(norm(src, norm_weight_2, norm_bias_2))
    src = norm(src + attend(src), norm_weight_1, norm_bias_1)
    return norm(src + feed(src), norm_weight_2, norm_bias_2)
