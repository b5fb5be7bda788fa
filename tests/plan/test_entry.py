"""Entries: made from one form and globs, checked against the site that they meet."""

from __future__ import annotations

import logging
from types import MappingProxyType

import pytest

from attnpass.errors import OptionError, PlanError
from attnpass.plan import Entry, assign, warn_or_raise
from attnpass.site import AttentionSite, Decline

ILLEGAL = Decline("NO_BLOCK", hint="no block around it")


def site(name: str, **changes) -> AttentionSite:
    legal = MappingProxyType({"skipat": changes.pop("no", None)})
    heads = changes.pop("heads", 2)
    return AttentionSite(name, "self", heads, heads, 8, 8, 5, 5, 0.5, legal=legal, **changes)


SITES = [site("blocks.0.attn", no=ILLEGAL), site("blocks.1.attn"), site("head.attn")]


def test_every_site_gets_an_entry_and_the_globs_select():
    entries, declines = assign(SITES, "relu", {"alpha": 0.5}, "blocks.*")
    assert [e.form for e in entries.values()] == ["relu", "relu", "softmax"]
    assert [e.options for e in entries.values()] == [{"alpha": 0.5}, {"alpha": 0.5}, {}]
    assert declines == []
    assert entries["head.attn"].fits == SITES[2].fits()
    assert assign(SITES, "relu")[0] == assign(SITES, "relu", None, ["*"])[0]


def test_an_illegal_site_stays_softmax_and_its_decline_is_returned(caplog):
    with caplog.at_level(logging.WARNING, "attnpass"):
        entries, declines = assign(SITES, "skipat", None, "blocks.*")
    assert [e.form for e in entries.values()] == ["softmax", "skipat", "softmax"]
    assert declines == [ILLEGAL] and caplog.text == ""


def test_an_illegal_site_that_is_named_is_told_or_raised(caplog):
    text = "expected a legal form at blocks.0.attn, got skipat (NO_BLOCK: no block around it)"
    with caplog.at_level(logging.WARNING, "attnpass"):
        assign(SITES, "skipat", None, ["blocks.0.attn"])
    assert [r.getMessage() for r in caplog.records] == [f"{text}; it stays softmax"]
    with pytest.raises(PlanError, match="expected a legal form at blocks.0.attn"):
        assign(SITES, "skipat", None, ["blocks.0.attn"], strict=True)


def test_unknown_forms_and_globs_that_match_nothing_are_refused():
    with pytest.raises(OptionError, match="expected a form of softmax"):
        assign(SITES, "flash")
    with pytest.raises(OptionError, match=r"got 'x\*'; sites are blocks.0.attn, blocks.1.attn"):
        assign(SITES, "relu", None, ["*", "x*"])
    assert assign([], "relu", None, "x*") == ({}, [])


@pytest.mark.parametrize(
    ("entry", "changes"),
    [
        (Entry("softmax"), False),
        (Entry("softmax", {"learns": False}), False),
        (Entry("softmax", {"learns": True}), True),
        (Entry("hydra"), True),
    ],
)
def test_changes(entry, changes):
    assert entry.changes is changes


def test_check_names_the_first_difference():
    Entry("relu", fits=SITES[0].fits()).check(SITES[1])
    Entry("relu").check(SITES[0])
    with pytest.raises(PlanError, match="site head.attn with heads 2, got 4: another model"):
        Entry("relu", fits=SITES[2].fits()).check(site("head.attn", heads=4))
    with pytest.raises(PlanError, match="expected a legal form at blocks.0.attn, got skipat"):
        Entry("skipat").check(SITES[0])


def test_as_dict_leaves_out_empty_options():
    assert Entry("relu").as_dict() == {"form": "relu", "fits": {}, "weights": ""}
    assert Entry("relu", {"alpha": 1}).as_dict()["options"] == {"alpha": 1}


def test_warn_or_raise(caplog):
    error = PlanError("one line")
    with caplog.at_level(logging.WARNING, "attnpass"):
        warn_or_raise(error, strict=False)
    assert [r.getMessage() for r in caplog.records] == ["one line"]
    with pytest.raises(PlanError) as caught:
        warn_or_raise(error, strict=True)
    assert caught.value is error
