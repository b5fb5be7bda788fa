"""Which implementation serves an operator's call: Triton on a GPU from sm80 on, else the CPU side.

The CPU side also serves what no kernel does, by plain torch operations on any device. Triton is
imported when the first call on a GPU comes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attnpass.kernels import torch_softmax
from attnpass.kernels.call import (
    HydraCall,
    HydraGradients,
    Normalised,
    PointwiseCall,
    PointwiseGradients,
)
from attnpass.kernels.cpu import hydra_launch, pointwise_launch
from attnpass.kernels.gpu import limits


def _has_triton(x: Tensor) -> bool:
    """Whether the Triton kernels serve the device and the dtype of ``x``: they sum in float32."""
    fits = x.device.type == "cuda" and x.dtype != torch.float64
    return fits and limits.capability() >= limits.MIN_CAPABILITY


def pointwise(call: PointwiseCall) -> Tensor:
    """``[B, H, T, dv]``; see ``PointwiseCall``."""
    if not _has_triton(call.q):
        return pointwise_launch.pointwise(call)
    from attnpass.kernels.gpu import pointwise_triton_launch

    with torch.cuda.device_of(call.q):  # kernels start on the current device
        return pointwise_triton_launch.pointwise(call)


def pointwise_backward(grad: Tensor, call: PointwiseCall, needs_bias: bool) -> PointwiseGradients:
    """The gradients for ``grad [B, H, T, dv]``; that of the bias only where it is needed."""
    if not _has_triton(call.q):
        return pointwise_launch.pointwise_backward(grad, call, needs_bias)
    from attnpass.kernels.gpu import pointwise_backward_triton_launch

    with torch.cuda.device_of(call.q):
        return pointwise_backward_triton_launch.pointwise_backward(grad, call, needs_bias)


def softmax(call: PointwiseCall) -> Normalised:
    """``softmax(scale q.k + bias) v`` and its log-sum-exp."""
    if _has_triton(call.q) and call.v.shape[3] > 0:
        from attnpass.kernels.gpu import pointwise_triton_launch

        with torch.cuda.device_of(call.q):
            return pointwise_triton_launch.softmax(call)
    if call.q.device.type == "cuda":
        return torch_softmax.softmax(call)
    return pointwise_launch.softmax(call)


def softmax_backward(
    grad: Tensor,
    call: PointwiseCall,
    lse: Tensor,
    delta: Tensor,
    needs_bias: bool,
    out: Tensor | None = None,
) -> PointwiseGradients:
    """The gradients for ``grad [B, H, T, dv]``; see ``torch_softmax.softmax_backward``."""
    if _has_triton(call.q):
        from attnpass.kernels.gpu import pointwise_backward_triton_launch

        with torch.cuda.device_of(call.q):
            sums = torch_softmax.row_sums(grad, delta, out)
            return pointwise_backward_triton_launch.softmax_backward(
                grad, call, lse, sums, needs_bias
            )
    if call.q.device.type == "cuda":
        return torch_softmax.softmax_backward(grad, call, delta, needs_bias, out)
    return pointwise_launch.softmax_backward(grad, call, lse, delta, needs_bias, out)


def hydra(call: HydraCall) -> Tensor:
    """``[B, H, T, d]``; see ``HydraCall``."""
    if not _has_triton(call.q):
        return hydra_launch.hydra(call)
    from attnpass.kernels.gpu import hydra_triton_launch

    with torch.cuda.device_of(call.q):
        return hydra_triton_launch.hydra(call)


def hydra_backward(grad: Tensor, call: HydraCall) -> HydraGradients:
    """The gradients for ``grad [B, H, T, d]``; see ``HydraCall``."""
    if not _has_triton(call.q):
        return hydra_launch.hydra_backward(grad, call)
    from attnpass.kernels.gpu import hydra_triton_launch

    with torch.cuda.device_of(call.q):
        return hydra_triton_launch.hydra_backward(grad, call)
