"""SQLite: tiles, measurements, plans, runs. The one place with SQL."""

from __future__ import annotations

from attnpass.plan import Plan


def pinned_plans(db: str | None) -> list[Plan]:
    """The pinned plans of a database."""
    return []
