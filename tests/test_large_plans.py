"""A plan of a hundred thousand sites: work grows as the sites do, and what is said stays short."""

from __future__ import annotations

import io
import json

import pytest
import torch
from compiling import build, data
from steps import growth
from torch import nn

from attnpass import Capture, Plan
from attnpass.compiled.layers import layer, others, refuse_missed, served
from attnpass.console import PlainConsole
from attnpass.fingerprint import digest_weights
from attnpass.matching import Outline
from attnpass.plan.entry import Entry
from attnpass.site import AttentionSite
from attnpass.tuner.check.verify import _misfits
from attnpass.tuner.show import plan_table

LINEAR = 4.4
"""Four times the sites cost at most that many times the steps."""


def site(name):
    return AttentionSite(
        name, "self", 2, 2, 8, 8, 5, 5, 0.3, weights=((2, 2),), legal={"hydra": None}
    )


def weights(n):
    return [nn.Parameter(torch.full((2, 2), float(i))) for i in range(n)]


def plan(n, *, values=True, bound=(), recorded=()):
    names = [f"blocks.{i}.attn" for i in range(n)]
    made = Plan({name: Entry("hydra", {}, site(name).fits()) for name in names})
    if values:
        made.initialise(map(site, names))
    for name, weight in zip(names, bound):  # noqa: B905 either may be empty
        made.bindings.bind(name, [weight])
    for name, weight in zip(names, recorded):  # noqa: B905
        made.sites[name].weights = digest_weights([weight])
    return made


def outline(n):
    names = [f"blocks.{i}.attn" for i in range(n)]
    return Outline(
        sites=[site(name) for name in names],
        projections=[(i,) for i in range(n)],
        paths=[f"{name}.in_proj_weight" for name in names],
    )


def printed(*plans):
    out = io.StringIO()
    PlainConsole(width=160, file=out).print(plan_table(*plans))
    return out.getvalue()


def loading(folder, values):
    def run(n):
        path = plan(n, values=values).save(folder / f"{n}.json")
        return lambda: Plan.load(path)

    return run


@pytest.mark.parametrize("values", [False, True])
def test_loading_grows_as_the_sites_do(values, tmp_path):
    assert growth(loading(tmp_path, values)) < LINEAR


@pytest.mark.parametrize(
    "look",
    [
        lambda p: lambda: p.hash,
        lambda p: p.as_dict,
        lambda p: lambda: plan_table(p),
        lambda p: lambda: plan_table(p, p.copy()),
        lambda p: p.copy,
        lambda p: lambda: p.absent(set(p.sites)),
    ],
)
def test_looking_at_a_plan_grows_as_its_sites_do(look):
    assert growth(lambda n: look(plan(n))) < LINEAR


def test_verifying_grows_as_the_sites_do():
    capture = Capture(build(2)).trace(data())

    def run(n):
        made = plan(n)
        return lambda: (_misfits(made, capture), capture.use(made))

    assert growth(run) < LINEAR


@pytest.mark.parametrize("known", ["bound", "recorded", "neither"])
def test_serving_a_graph_of_all_sites_grows_as_they_do(known):
    def run(n):
        own, graph = weights(n), outline(n)
        made = plan(n, **({} if known == "neither" else {known: own}))

        def compile():
            found = served(graph, own, made)
            assert len(found.names) == n and not found.unknown
            others(graph, made, found.names)
            refuse_missed(own, made, found.names, strict=True)
            return layer(graph, own, made, found.names, {}, strict=True)

        return compile

    assert growth(run) < LINEAR


def test_serving_a_graph_of_one_site_grows_as_the_plan_does():
    def run(n):
        own, made = weights(1), plan(n)
        one = Outline([site("attn")], [(0,)], ["attn.in_proj_weight"])
        return lambda: (served(one, own, made), others(one, made, {}))

    assert growth(run) < LINEAR


def test_what_is_printed_of_a_large_plan_is_bounded():
    large = printed(plan(20_000, values=False))
    assert len(large.splitlines()) < 520
    assert "19500 sites more; --json gives all" in " ".join(large.split())


def test_many_sites_that_a_model_lacks_are_one_problem():
    (error,) = plan(20_000, values=False).absent({"blocks.0.attn"})
    assert "and 19996 more" in str(error) and len(str(error)) < 300


def test_the_dictionary_of_a_plan_is_made_for_json_alone(tmp_path, monkeypatch):
    from click.testing import CliRunner

    from attnpass.tuner.cli import main

    path = str(plan(3).save(tmp_path / "plan.json"))
    found = json.loads(CliRunner().invoke(main, ["show", path, "--json"]).stdout)
    assert len(found["sites"]) == 3
    monkeypatch.setattr(Plan, "as_dict", None)
    shown = CliRunner().invoke(main, ["show", path])
    assert shown.exit_code == 0 and "blocks.2.attn" in shown.stdout


def test_work_that_grows_as_the_square_is_seen():
    def run(n):
        return lambda: [(i, j) for i in range(n) for j in range(n)]

    assert growth(run) > 15
    assert growth(lambda n: lambda: [(i, i) for i in range(n)]) < LINEAR
