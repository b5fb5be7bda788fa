"""Which plan a graph runs under."""

from __future__ import annotations

import pytest
import torch
from compiling import build, data

import attnpass
from attnpass import Plan
from attnpass.compiled.choice import chosen_plan, pinned_plans
from attnpass.compiled.options import Options
from attnpass.errors import OptionError, PlanError
from attnpass.report import Report
from attnpass.store import Store


@pytest.fixture(scope="module")
def met():
    """A model, its matched graph and the graph's inputs."""
    model, seen = build(2), []
    capture = attnpass.Capture(model)
    backend = capture._backend

    def spy(gm, inputs):
        run = backend(gm, inputs)
        seen.append(list(inputs))
        return run

    capture._entry = torch.compile(model, backend=spy)
    capture.trace(data())
    return model, capture.graphs[0].matched, seen[0]


def choose(met, **options):
    report = Report()
    _, graph, inputs = met
    return chosen_plan(graph, inputs, Options.parse(options), report), report


def test_a_plan_that_is_given_is_the_one(met):
    plan = Plan.create(met[0], data(), form="hydra")
    assert choose(met, plan=plan)[0] is plan


def test_a_form_is_a_plan_of_constants_where_it_is_legal(met):
    plan, report = choose(met, form="skipat")
    assert [e.form for e in plan.sites.values()] == ["softmax", "skipat"]
    assert not plan.trainable and [d.code for d in report.declined] == ["CROSS_GRAPH"]


def test_a_glob_may_match_in_another_graph_unless_strict(met):
    plan, _ = choose(met, form="sigmoid", sites=["elsewhere.*"])
    assert plan.sites == {}
    plan, _ = choose(met, form="sigmoid", sites=["elsewhere.*", "blocks.1.*"])
    assert [e.form for e in plan.sites.values()] == ["softmax", "sigmoid"]
    with pytest.raises(OptionError, match="a glob that matches a site"):
        choose(met, form="sigmoid", sites=["elsewhere.*"], strict=True)


def test_an_illegal_site_that_is_named_raises_with_strict(met):
    with pytest.raises(PlanError, match="a legal form at blocks.0.attn"):
        choose(met, form="skipat", sites=["blocks.0.attn"], strict=True)


def test_the_pinned_plan_of_these_weights_and_no_other(met, tmp_path, caplog):
    model, db = met[0], str(tmp_path / "a.db")
    assert choose(met, db=db)[0] is None
    plan = Plan.create(model, data(), form="relu")
    with Store(db) as store:
        store.pin(plan)
    found, _ = choose(met, db=db)
    assert found.hash == plan.hash and all(not p.requires_grad for p in found.parameters())
    other = build(2)
    with torch.no_grad():
        other.blocks[0].attn.q.weight.add_(1.0)
    with Store(db) as store:
        store.unpin(plan)
        store.pin(Plan.create(other, data(), form="relu"))
    assert choose(met, db=db)[0] is None and "other weights" in caplog.text


def test_a_database_that_cannot_be_read_pins_nothing(tmp_path, caplog):
    path = tmp_path / "broken.db"
    path.write_text("no database")
    assert pinned_plans(Options.parse({"db": str(path)})) == []
    assert "pinned plans are not applied" in caplog.text
