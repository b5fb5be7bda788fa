"""Makes a torchvision built for CUDA importable without it."""

from typing import Any

import torch

_kept: list[Any] = []


def torchvision() -> None:
    """Define the schemas of two operators that a library which does not load would bring."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        try:
            library.define(schema)
        except RuntimeError:  # torchvision's own library did load, or this ran before
            return
    _kept.append(library)
