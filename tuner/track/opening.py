"""The observers that a tune command asks for."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from attnpass.errors import MissingDependencyError
from attnpass.tuner.search import Inspection, Observer, Observers, first_line


def open_observers(
    inspection: Inspection, say: Callable[[str], None], *, storage: str, mlflow: str
) -> Observers:
    """The observers of a run: an Optuna storage and an MLflow server, each ``""`` for none.

    One that cannot be opened is said and left out.

    Raises:
        MissingDependencyError: MLflow is asked for and not installed.
    """
    # imported late: both load slowly
    asked: list[tuple[str, Callable[[], Observer]]] = []
    if storage:
        from attnpass.tuner.track.study import StudyCopy

        asked.append((StudyCopy.name, lambda: StudyCopy(inspection, storage)))
    if mlflow:
        if find_spec("mlflow") is None:
            raise MissingDependencyError(
                "--mlflow needs mlflow, which is not installed; pip install 'attnpass[mlflow]'"
            )
        from attnpass.tuner.track.mlflow_run import MlflowRun

        asked.append((MlflowRun.name, lambda: MlflowRun(inspection, mlflow)))
    opened: list[Observer] = []
    for name, make in asked:
        try:
            opened.append(make())
        except Exception as error:
            say(f"{name} failed, the run goes on without it: {first_line(error)}")
    return Observers(opened, say)
