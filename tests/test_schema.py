"""docs/schema.md is what the code makes, and names every table, column and kind there is."""

from __future__ import annotations

import re

import house
import schema


def test_the_page_is_current():
    """``python -m tests.schema --write`` makes it so."""
    assert schema.page() == schema.PAGE.read_text()


def test_every_table_and_column_has_a_meaning():
    database = schema.made()
    rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    assert {name for (name,) in rows} == set(schema.TABLES)
    for table, (_, meanings) in schema.TABLES.items():
        assert [name for name, _, _ in schema.columns(database, table)] == list(meanings)
    database.close()


def test_every_kind_that_the_tuner_stores_is_described():
    code = "".join(p.read_text() for p in (house.ROOT / "tuner").rglob("*.py"))
    own = r"(?:session|store|distillation)\.(?:find|keep|measured|put|get)"
    calls = re.findall(rf'(?:{own}|_times)\(\s*"(\w+)"', code)
    assert {"accuracy", "bank", "tile"} <= set(calls)
    assert set(calls) == {kind.strip() for kind in schema.KINDS}
