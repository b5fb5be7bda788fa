"""The walk from a softmax up to the logits' product, and down to the one that reads the weights.

What stands between is collected as terms; anything else is refused by name.
"""

from __future__ import annotations

from torch import fx


class Refuse(Exception):
    """This anchor is not a site: a decline code, a hint, and the node that decided."""

    def __init__(self, code: str, hint: str, node: fx.Node) -> None:
        super().__init__(code, hint)
        self.code, self.hint, self.node = code, hint, node
