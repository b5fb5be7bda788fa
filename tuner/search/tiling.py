"""The first stage of a run: tiles for the shapes of its attentions, on this device."""

from __future__ import annotations

from attnpass.errors import CaptureError, MeasureError
from attnpass.kernels.activations import SOFTMAX
from attnpass.tuner.search.inspection import Inspection
from attnpass.tuner.search.menu import form_of
from attnpass.tuner.search.session import Session

SHARE = 0.5
"""The share of a timing's most seconds that the tiles may take in all."""


def functions(inspection: Inspection) -> list[str]:
    """The functions whose kernels a plan of the run may use, exact softmax first."""
    found = {SOFTMAX: None}
    for choice in inspection.settings.forms:
        form, options = form_of(choice)
        if form in ("sigmoid", "relu"):
            found[options.get("h", form)] = None
    return list(found)


def tune_tiles(inspection: Inspection, session: Session) -> Inspection:
    """The inspection under the tiles that were measured on this device, now or before.

    Raises:
        KeyboardInterrupt: the run is to stop; the tiles found so far are stored.
    """
    # imported late: a run without tiles needs no study
    from attnpass.tuner.tiles import shapes_of, tune

    settings, store = inspection.settings, session.store
    trials = settings.limits["tiles"]
    if trials == 0:
        return inspection
    stage = session.budget.stage(most=SHARE * settings.limits["seconds"])

    def left() -> float:
        session.stop.check()
        return stage()

    directions = ("forward", "backward") if settings.objective == "train" else ("forward",)
    try:
        met = shapes_of(inspection.task, functions(inspection), inspection.capture)
        shapes = [x.towards(direction) for direction in directions for x in met]
        tune(
            *(shapes, store, session.progress),
            trials=trials,
            seed=settings.seed,
            refresh=session.refresh,
            left=left,
        )
    except CaptureError:
        pass  # no attention here runs by a kernel with tiles
    except MeasureError as error:
        session.progress.say(f"tiles: {error}", style="yellow")
    return inspection.under_tiles(store)
