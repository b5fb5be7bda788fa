"""SkipAt: the attention of a block replaced by a transformation of the previous block's output.

Shapes: B batch, T tokens, N tokens after the prefix, D width, rD hidden width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnpass.forms.options import check_value
from attnpass.seeds import seeded


class SkipAt(nn.Module):
    """``Phi(Z)``: the previous attention block's output, transformed (2301.02240).

    ``Linear D -> rD, GELU, depthwise conv, GELU, Linear rD -> D, ECA``; r = 0 is the identity.
    On a patch grid the convolution is 2-D; else 1-D over tokens (our extension), left-padded where
    causal, and the ECA mean is then the running mean over tokens <= t.

    Args:
        width: D.
        r: hidden width over D; 0 makes Phi the identity, the paper uses 2.
        kernel: odd size of the convolution, in tokens or patches.
        grid: rows and columns of patch tokens; ``None`` for a sequence.
        prefix: number of tokens before the patch tokens, which pass unchanged.
        causal: whether no token may see a later one; a causal site is a sequence in any case.
        seed: of Phi's random start, so that a start is reproducible.

    Raises:
        OptionError: an ``r`` or ``kernel`` out of range.
    """

    def __init__(
        self,
        width: int,
        *,
        r: float = 0.0,
        kernel: int = 5,
        grid: tuple[int, int] | None = None,
        prefix: int = 0,
        causal: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_value("r", r)
        check_value("kernel", kernel)
        self.hidden, self.kernel, self.prefix = round(r * width), kernel, prefix
        self.grid, self.causal = None if causal else grid, causal
        if self.hidden == 0:
            return
        with seeded(seed):
            self.up = nn.Linear(width, self.hidden)
            conv: type[nn.Conv1d | nn.Conv2d] = nn.Conv1d if self.grid is None else nn.Conv2d
            self.conv = conv(self.hidden, self.hidden, kernel, groups=self.hidden)
            self.down = nn.Linear(self.hidden, width)
            self.eca = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, z: Tensor, keep: Tensor | None = None) -> Tensor:
        """The block output ``[B, T, D]`` from that of the previous block, ``z``.

        ``keep`` is bool ``[B|1, 1, 1, T]``; tokens that are not kept reach no other token.
        """
        if self.hidden == 0:
            return z
        x, mask = z, None if keep is None else keep[:, 0, 0, :, None]  # [B, T, 1]
        if self.prefix:
            x = x[:, self.prefix :]
            mask = None if mask is None else mask[:, self.prefix :]
        x = linear_as(self.down, self.features(x, mask))
        x = x * self._channel_gate(x, mask)
        return torch.cat([z[:, : self.prefix], x], dim=1) if self.prefix else x

    def features(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The input of the last linear layer, ``[B, N, rD]``."""
        return F.gelu(self.convolved(x, mask))

    def convolved(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The output of the convolution, ``[B, N, rD]``."""
        x = F.gelu(linear_as(self.up, x))
        x = x if mask is None else x * mask
        assert self.conv.bias is not None
        weight, bias = (p.to(x.dtype) for p in (self.conv.weight, self.conv.bias))
        if self.grid is not None:
            rows = x.transpose(1, 2).unflatten(2, self.grid)
            rows = F.conv2d(rows, weight, bias, padding="same", groups=self.hidden)
            return rows.flatten(2).transpose(1, 2)
        # the convolution as a sum of shifted tokens, so that nothing is transposed
        after = 0 if self.causal else self.kernel // 2
        padded = _in_memory(F.pad(x, (0, 0, self.kernel - 1 - after, after)))
        taps = _in_memory(weight[:, 0].T.contiguous())
        out: Tensor = bias
        for i, tap in enumerate(taps):
            out = out + padded[:, i : i + x.shape[1]] * tap
        return out

    def _channel_gate(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Efficient channel attention over ``x [B, N, D]``: ``[B, 1|N, D]`` in 0..1."""
        kept = torch.ones_like(x[:, :, :1]) if mask is None else mask.expand(x.shape[0], -1, -1)
        dtype, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
        kept = kept.to(x.dtype)
        if self.causal:
            mean = (x * kept).cumsum(1) / kept.cumsum(1).clamp_min(1)
        else:
            mean = (x * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp_min(1)
        rows = mean.to(dtype).reshape(-1, 1, x.shape[2])  # [B*N, 1, D]
        gate = F.conv1d(rows, self.eca.weight.to(dtype), padding=self.eca.padding)
        return torch.sigmoid(gate).view(mean.shape)


def _in_memory(x: Tensor) -> Tensor:
    """``x`` behind a view that makes inductor store ``x`` instead of computing it at every use."""
    return x.as_strided(x.shape, x.stride())


def linear_as(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer's output in the dtype of ``x [..., D]``: Phi's parameters stay in float32."""
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))
