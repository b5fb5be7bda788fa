"""Results for people: tables, a verdict in words, pictures, one HTML file. Decides nothing.

May import the records of ``tuner.search`` and ``tuner.check``, and plans. Matplotlib and plotly
are imported when something is drawn.
"""

from __future__ import annotations

from attnpass.tuner.show.history import comparison_table, measurements_table
from attnpass.tuner.show.html import write_report
from attnpass.tuner.show.markdown import write_markdown
from attnpass.tuner.show.pictures import draw_front, draw_similarities
from attnpass.tuner.show.plans import plan_table
from attnpass.tuner.show.questions import choice_table, difference_table, solution_table
from attnpass.tuner.show.tables import (
    cka_table,
    forms_line,
    front_table,
    runs_table,
    sensitivity_table,
    tile_table,
)
from attnpass.tuner.show.words import verdict

__all__ = [
    "choice_table",
    "cka_table",
    "difference_table",
    "comparison_table",
    "draw_front",
    "draw_similarities",
    "forms_line",
    "front_table",
    "measurements_table",
    "plan_table",
    "runs_table",
    "sensitivity_table",
    "solution_table",
    "tile_table",
    "verdict",
    "write_markdown",
    "write_report",
]
