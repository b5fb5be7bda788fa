"""The inner compiler gets the graph, and inductor the settings that were asked for."""

from __future__ import annotations

import pytest
import torch
from tracing import traced

from attnpass.compiled import inner
from attnpass.compiled.inner import compile_inner
from attnpass.compiled.options import Options

X = torch.ones(2, 3)


def graph():
    return traced(lambda x: x.exp() + 1, X)


def test_a_callable_is_given_graph_and_inputs():
    gm, seen = graph(), []

    def mine(*given):
        seen.append(given)
        return gm.forward

    run = compile_inner(gm, [X], Options.parse({"inner": mine}))
    assert seen == [(gm, [X])] and torch.equal(run(X), X.exp() + 1)


def test_eager_runs_the_graph_itself():
    gm = graph()
    assert torch.equal(compile_inner(gm, [X], Options.parse({"inner": "eager"}))(X), X.exp() + 1)


@pytest.mark.parametrize("matcher", [True, False])
def test_inductor_is_told_mode_settings_and_matcher(matcher, monkeypatch):
    told = {}
    monkeypatch.setattr(inner, "compile_fx", lambda gm, inputs, patches: told.update(patches))
    options = {"mode": "max-autotune-no-cudagraphs", "inductor": {"max_fusion_size": 7}}
    compile_inner(graph(), [X], Options.parse(options), matcher=matcher)
    assert told["max_autotune"] is True and told["max_fusion_size"] == 7
    assert told.get("pattern_matcher") == (None if matcher else False)


def test_the_user_has_the_last_word(monkeypatch):
    told = {}
    monkeypatch.setattr(inner, "compile_fx", lambda gm, inputs, patches: told.update(patches))
    options = Options.parse({"inductor": {"pattern_matcher": True}})
    compile_inner(graph(), [X], options, matcher=False)
    assert told == {"pattern_matcher": True}
