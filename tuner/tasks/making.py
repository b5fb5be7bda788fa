"""Makes the task of a description."""

from __future__ import annotations

from attnpass.errors import TaskError
from attnpass.task import Task
from attnpass.text import shown
from attnpass.tuner.tasks import language, pictures
from attnpass.tuner.tasks.description import KINDS, Description, described
from attnpass.tuner.tasks.scores import METRICS


def make(text: str) -> Task | None:
    """The task of a description; None where the text is none.

    Raises:
        TaskError: a model, data, columns or labels that do not fit.
        MissingDependencyError: a package that is needed is not installed.
    """
    found = described(text)
    return None if found is None else complete(found)[0]


def complete(description: Description) -> tuple[Task, Description]:
    """The task, and its description with everything found out.

    Raises:
        TaskError, MissingDependencyError: as ``make``.
    """
    if not description.data:
        raise TaskError(
            f"expected data for {description.source}:{description.model}, got none; --data FILE"
        )
    if description.source in ("timm", "torchvision"):
        _check(description, "image-classification")
        return pictures.make(description)
    config = language.configured(description)
    own = "embedding" if description.source == "st" else language.kind_of(config)
    kind = description.kind or own
    _check(description, kind)
    if kind == "image-classification":
        return pictures.make(description)
    return language.make(description.with_options({"kind": kind}), config)


def _check(description: Description, kind: str) -> None:
    if description.kind not in ("", kind):
        raise TaskError(
            f"expected {description.source}:{description.model} for {kind}, got {description.kind}"
        )
    if description.metric and description.metric not in METRICS[kind]:
        raise TaskError(
            f"expected a metric of {', '.join(METRICS[kind])} for {kind}, got"
            f" {shown(description.metric)}"
        )
    assert kind in KINDS
