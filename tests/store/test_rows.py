"""Columns that should hold JSON objects, and plans, whatever is in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnpass.errors import PlanError
from attnpass.store.rows import decoded, json_object, stored_plan


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": 1}', {"a": 1}),
        ("{}", {}),
        *((text, None) for text in (None, "", "[]", "3", "null", "{", "[" * 10**5)),
    ],
)
def test_an_object_or_none(text, found):
    assert json_object(text) == found


def test_a_run_with_damaged_columns_has_empty_ones():
    row = {"id": "a", "settings": "{", "context": '{"a": 1}', "result": None}
    assert decoded(row) == {"id": "a", "settings": {}, "context": {"a": 1}, "result": {}}


def test_a_plan_of_no_document_is_one_line():
    with pytest.raises(PlanError, match="expected plan x in a.db, got a corrupt row; export or"):
        stored_plan({"hash": "x", "document": "3", "parameters": None}, Path("a.db"))
