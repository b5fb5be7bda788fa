"""Changes to a tiny task, in tables by kind: ``task_changes.py`` applies them."""

from changes.models import MODELS
from changes.objects import FUNCTIONS, OBJECTS
from changes.others import OTHERS
from changes.sources import SOURCES

CHANGES = [*SOURCES, *OBJECTS, *FUNCTIONS, *MODELS, *OTHERS]
