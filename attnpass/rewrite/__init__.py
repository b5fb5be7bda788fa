"""Graph + regions + modules -> graph."""

from __future__ import annotations

from attnpass.rewrite.branch import Branch, branch
from attnpass.rewrite.rewriter import FORMS_ATTRIBUTE, rewrite

__all__ = ["Branch", "FORMS_ATTRIBUTE", "branch", "rewrite"]
