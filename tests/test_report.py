"""Reports: merged over graphs, shown as a table, and plain JSON types."""

from __future__ import annotations

import json
import threading
from types import MappingProxyType

import pytest

from attnpass import compiled_report, reset_report
from attnpass.report import Report, record
from attnpass.site import FORMS, AttentionSite, Decline

NO = Decline("MASK_ARBITRARY", "a.attn", "m.py:3", "use [a boolean] mask")


def site(name: str, kv_heads: int = 2) -> AttentionSite:
    legal = MappingProxyType({"hydra": NO})
    return AttentionSite(name, "self", 4, kv_heads, 8, 8, 5, "s1", 0.5, bias=True, legal=legal)


def report(name: str, **changes) -> Report:
    return Report([site(name)], [NO], {name: "relu"}, plan=name, graphs=1, **changes)


@pytest.fixture(autouse=True)
def empty():
    reset_report()
    yield
    reset_report()


def test_a_site_or_decline_of_two_graphs_counts_once():
    total = Report()
    for name in ("a", "b", "a"):
        total.merge(report(name, misread=[NO]))
    assert [s.name for s in total.sites] == ["a", "b"]
    assert total.declined == total.misread == [NO]
    assert total.rewritten == {"a": "relu", "b": "relu"}
    assert (total.plan, total.graphs) == ("a", 3)
    total.merge(Report())
    assert total.plan == "a", "a graph without a plan keeps the last one"
    assert total.summary == "2 attention sites found, 2 rewritten, 1 declined"


def test_it_is_plain_json():
    out = json.loads(json.dumps(report("a").as_dict()))
    assert out.keys() == Report.__dataclass_fields__.keys()
    assert out["declined"] == [NO.as_dict()] and out["sites"][0]["name"] == "a"


def test_the_table_says_what_runs_and_what_is_illegal():
    text = str(report("a.attn", misread=[NO]))
    (row,) = [line for line in text.splitlines() if "self" in line]
    cells = [cell.strip() for cell in row.strip("│┃|").split("│")]
    assert cells[:6] == ["a.attn", "self", "fused", "4/2x8", "5xs1", "+bias"]
    marks = dict(zip(FORMS, cells[6:], strict=True))
    assert marks == {
        "softmax": "yes",
        "sigmoid": "yes",
        "relu": "runs",
        "hydra": "MASK_ARBITRARY",
        "skipat": "yes",
    }
    for verdict in ("declined", "misread"):
        line = f"{verdict} a.attn: MASK_ARBITRARY: use [a boolean] mask (m.py:3)"
        assert line in text.splitlines()


def test_heads_without_groups_are_one_number():
    table = Report([site("a", kv_heads=4)]).table()
    assert list(table.columns[3].cells) == ["4x8"]


def test_the_process_report_is_a_copy_and_can_be_reset():
    record(report("a"))
    found = compiled_report()
    found.sites.clear()
    assert [s.name for s in compiled_report().sites] == ["a"]
    reset_report()
    assert compiled_report() == Report()


def test_graphs_compiled_at_once_are_all_counted():
    threads = [threading.Thread(target=record, args=(report(str(i)),)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert compiled_report().graphs == len(compiled_report().sites) == 20
