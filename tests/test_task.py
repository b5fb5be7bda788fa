"""Tasks: loaded from an import path, checked, scored, and known by how they judge."""

from __future__ import annotations

from tiny_tasks import tiny


def test_a_tasks_digest_knows_how_it_judges():
    def scored(k):
        return tiny(score=lambda output, target: (output.argmax(1) == target) * float(k))

    assert scored(1).digest() == scored(1).digest() != scored(2).digest()
