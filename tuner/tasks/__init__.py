"""Tasks without code: a model and data that people have, from one line or a YAML file.

``make`` gives the ``Task`` of a description, ``described`` reads one, ``complete`` also says what
was found out. A description names the model (``hf:``, ``st:``, ``timm:``, ``torchvision:``), the
data and how both are used. Allowed imports: task, errors, text, batch and the tuner's measure;
packages of models and of data only when they are needed.
"""

from __future__ import annotations

from attnpass.tuner.tasks.description import KINDS, SOURCES, Description, as_yaml, described
from attnpass.tuner.tasks.making import complete, make

__all__ = ["KINDS", "SOURCES", "Description", "as_yaml", "complete", "described", "make"]
