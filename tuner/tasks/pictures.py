"""Tasks of images: a model of timm, torchvision or transformers, and a folder or table of images.

Shapes: N items, C channels, H height, W width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attnpass.errors import MissingDependencyError, TaskError
from attnpass.task import Task
from attnpass.text import shown
from attnpass.tuner.tasks import scores
from attnpass.tuner.tasks.description import Description
from attnpass.tuner.tasks.parts import parted
from attnpass.tuner.tasks.rows import column, read

log = logging.getLogger("attnpass.tasks")

SERVED, LESSON, JUDGED, CALIBRATION = 16, 8, 32, 128
"""Images of a call as served, of batches to learn from and to judge by, and to calibrate on."""

KEPT = 2**31
"""Bytes of prepared images that are kept; the others are read again whenever they are needed."""


class Read(NamedTuple):
    """A model of images.

    Attributes:
        prepare: a picture as the model takes it, ``[C, H, W]``. argument: its name, where a call
            is by name. labels: the model's number of each class by name, where it has names.
        classes: how many classes there are.
    """

    model: nn.Module
    prepare: Callable[[Any], Tensor]
    argument: str
    labels: dict[str, int]
    classes: int


class Images(Sequence[Tensor]):
    """Prepared images of files, read when they are needed."""

    def __init__(self, files: Sequence[str], prepare: Callable[[Any], Tensor]) -> None:
        self.files, self.prepare = files, prepare
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: Any) -> Any:
        if i in self._kept:
            return self._kept[i]
        x = self.prepare(_opened(self.files[i]))
        if x.numel() * x.element_size() * len(self._kept) < KEPT:
            self._kept[i] = x
        return x


class ImageBatches(Sequence[Any]):
    """Batches of a call's arguments; with targets, pairs of both."""

    def __init__(
        self,
        images: Images,
        size: int,
        made: Callable[[Tensor], Any],
        targets: Tensor | None = None,
    ) -> None:
        self.images, self.size, self.made, self.targets = images, size, made, targets

    def __len__(self) -> int:
        return -(-len(self.images) // self.size)

    def __getitem__(self, i: Any) -> Any:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        start = (i % len(self)) * self.size
        rows = range(start, min(start + self.size, len(self.images)))
        batch = self.made(torch.stack([self.images[row] for row in rows]))
        if self.targets is None:
            return batch
        return batch, self.targets[rows.start : rows.stop]


def make(description: Description) -> tuple[Task, Description]:
    """The task of a model of images, and its description with everything found out.

    Raises:
        TaskError: data, columns or labels that do not fit.
        MissingDependencyError: a package that is needed is not installed.
    """
    judged, learnt = read(description.data)
    if description.learn:
        learnt = read(description.learn)[0]
    image = column(judged, description.text, ("image", "file", "path", "file_name"), "text")
    label = column(judged, description.label, ("label", "labels", "class", "category"), "label")
    others, mine = parted(judged, learnt, description.items, lambda row: _content(row[image]))
    names = sorted({str(row[label]) for row in judged})
    found = READERS[description.source](description, names)
    dtype = getattr(torch, description.dtype or "float32")
    device = description.device or "cpu"
    model = found.model.to(device=device, dtype=dtype).eval()
    target = torch.tensor(_classes([str(row[label]) for row in mine], names, found, description))

    def call(x: Tensor) -> Any:
        x = x.to(device=device, dtype=dtype)
        return {found.argument: x} if found.argument else (x,)

    batch = description.batch or SERVED
    judge, learn = (Images([row[image] for row in part], found.prepare) for part in (mine, others))
    first = Images(learn.files[:CALIBRATION], found.prepare)
    validation = ImageBatches(judge, max(batch, JUDGED), call, target.to(device))
    metric = description.metric or "accuracy"
    made = Task(
        name=f"{description.source}:{Path(description.model).name}",
        model=model,
        example=ImageBatches(judge, batch, call)[0],
        calibration=ImageBatches(first, 32, call),
        validation=validation,
        score=scores.METRICS["image-classification"][metric],
        metric=metric,
        recovery=ImageBatches(learn, LESSON, call),
    )
    full = {
        "kind": "image-classification",
        "metric": metric,
        "batch": batch,
        "label": label,
        "dtype": str(dtype).removeprefix("torch."),
        "device": device,
    }
    return made, description.with_options(full)


def _opened(image: object) -> Any:
    """The picture of a file, or one that a table holds."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, dict) and image.get("bytes"):
        import io

        image = io.BytesIO(image["bytes"])
    try:
        with Image.open(image) as found:  # type: ignore[arg-type]
            return found.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise TaskError(f"expected an image at {shown(image)}, got: {error}") from error


def _content(image: object) -> str:
    """A digest of an image's file: copies of one picture have the same."""
    import hashlib

    if isinstance(image, str):
        try:
            return hashlib.sha256(Path(image).read_bytes()).hexdigest()
        except OSError as error:
            raise TaskError(f"expected an image at {image}, got: {error.strerror}") from error
    if isinstance(image, dict) and image.get("bytes"):
        return hashlib.sha256(image["bytes"]).hexdigest()
    return hashlib.sha256(_opened(image).tobytes()).hexdigest()


def _classes(
    labels: Sequence[str], names: Sequence[str], found: Read, description: Description
) -> list[int]:
    """The model's number of every label: by its own names, by number, or in the names' order.

    Raises:
        TaskError: labels that the model does not know.
    """
    own = {k.lower(): v for k, v in found.labels.items()}
    if all(x.lower() in own for x in names):
        return [own[x.lower()] for x in labels]
    if all(x.isdigit() and int(x) < found.classes for x in names):
        return [int(x) for x in labels]
    if len(names) == found.classes:
        order = {name: i for i, name in enumerate(names)}
        return [order[x] for x in labels]
    unknown = next(x for x in names if x.lower() not in own)
    raise TaskError(
        f"expected labels that {description.model} knows, numbers below {found.classes}, or"
        f" {found.classes} names in the model's order; got {len(names)}, {shown(unknown)} among"
        " them"
    )


def _timm(description: Description, names: Sequence[str]) -> Read:
    """A model of timm, downloaded or with a checkpoint of as many classes as the data has."""
    try:
        import timm
    except ImportError as error:
        raise _missing("timm", error) from error
    own = {"checkpoint_path": description.checkpoint, "num_classes": len(names)}
    try:
        if description.checkpoint:
            model = timm.create_model(description.model, pretrained=False, **own)
        else:
            model = timm.create_model(description.model, pretrained=True)
    except Exception as error:
        raise _not_made(description, error) from error
    config = timm.data.resolve_model_data_config(model)
    prepare = timm.data.create_transform(**config, is_training=False)
    told = (model.pretrained_cfg or {}).get("label_names") or ()
    return Read(model, prepare, "", {str(n): i for i, n in enumerate(told)}, model.num_classes)


def _torchvision(description: Description, names: Sequence[str]) -> Read:
    """A model of torchvision, downloaded or with a checkpoint."""
    try:
        from torchvision import models, transforms
    except ImportError as error:
        raise _missing("torchvision", error) from error
    try:
        if not description.checkpoint:
            weights = models.get_model_weights(description.model).DEFAULT
            labels = {n: i for i, n in enumerate(weights.meta["categories"])}
            model = models.get_model(description.model, weights=weights)
            return Read(model, weights.transforms(), "", labels, len(labels))
        model = models.get_model(description.model, num_classes=len(names))
        model.load_state_dict(torch.load(description.checkpoint, weights_only=True))
    except Exception as error:
        raise _not_made(description, error) from error
    side = getattr(model, "image_size", 224)
    steps = [
        transforms.Resize(int(side / 0.875)),
        transforms.CenterCrop(side),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    return Read(model, transforms.Compose(steps), "", {}, len(names))


def _transformers(description: Description, names: Sequence[str]) -> Read:
    """A model of transformers with its own image processor."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    try:
        model = AutoModelForImageClassification.from_pretrained(description.model)
        processor = AutoImageProcessor.from_pretrained(description.model)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise _not_made(description, error) from error

    def prepare(picture: Any) -> Tensor:
        found: Tensor = processor(images=picture, return_tensors="pt")["pixel_values"][0]
        return found

    labels = {str(k): int(v) for k, v in (model.config.label2id or {}).items()}
    return Read(model, prepare, "pixel_values", labels, int(model.config.num_labels))


READERS: dict[str, Callable[[Description, Sequence[str]], Read]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "hf": _transformers,
}


def _missing(package: str, error: ImportError) -> MissingDependencyError:
    return MissingDependencyError(
        f"{package}: needs the package {package}, which does not import ({error});"
        f" pip install 'attnpass[{package}]'"
    )


def _not_made(description: Description, error: Exception) -> TaskError:
    lines = [x for x in str(error).splitlines() if x.strip()] or [type(error).__name__]
    more = "" if description.checkpoint else "; checkpoint=FILE takes weights from a file"
    return TaskError(
        f"expected a model {description.model} of {description.source}, got: {lines[0]}{more}"
    )
