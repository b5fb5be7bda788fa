"""Graph + regions + modules -> graph.

``rewrite`` puts the modules of a plan into a copy of a graph; ``branch`` cuts out of it the part
that one site computes. Imports ``matching`` (regions, recipes), ``forms`` (how a form is called)
and ``graph``.
"""

from __future__ import annotations

from attnpass.rewrite.branch import Branch, branch
from attnpass.rewrite.check import check_rewritten
from attnpass.rewrite.rewriter import FORMS_ATTRIBUTE, rewrite

__all__ = ["FORMS_ATTRIBUTE", "Branch", "branch", "check_rewritten", "rewrite"]
