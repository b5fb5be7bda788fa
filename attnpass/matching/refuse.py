"""How a prover says no: by the condition that is not met, a decline code and the deciding node."""

from __future__ import annotations

from torch import fx


class Refuse(Exception):
    """This anchor is not a site.

    Attributes:
        condition: the prover and the number of the condition in its Soundness section, for
            example ``chain 3``.
        code: the stable decline code that users see. hint: one line. node: the node that decided.
    """

    def __init__(self, condition: str, code: str, hint: str, node: fx.Node) -> None:
        super().__init__(condition, code, hint)
        self.condition, self.code, self.hint, self.node = condition, code, hint, node
