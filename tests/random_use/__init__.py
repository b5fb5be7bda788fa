"""Random models, random sequences of calls, and random graphs of symbolic size for ``run.py``.

``meaning``: which positions a mask keeps. ``models``: the modules, which know no form.
``reference``: the same modules in float64, the forms written out by hand. ``session`` and
``steps``: a model in use. ``graphs``: single graphs. ``mutations``: what must be found.
"""
