"""A sample of the corpus of real models against the golden census; ``make census`` runs it all.

The sample shows that whole models of every package still get the verdicts that were looked at.
"""

import json
import warnings

import pytest
from zoo import census, specs

GOLDEN = json.loads(census.GOLDEN.read_text())
ALL = list(specs())
SAMPLE = [(spec, impl) for spec in ALL if spec.sample for impl in spec.impls]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries, while their models are built
@pytest.mark.parametrize(("spec", "impl"), SAMPLE, ids=lambda x: getattr(x, "name", x))
def test_as_in_the_golden_census(spec, impl):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = census.record(spec, impl)
    assert census.verdict(found) == GOLDEN[census.key(found)]
    assert census.problems(spec, found) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["roberta", "bloom", "samvit_base_patch16", "checkpointed"])
def test_gradients_of_the_round_trip(name):
    spec = next(s for s in ALL if s.name == name)
    assert census.gradients(spec, "eager") <= census.EXACT


def test_golden_census_holds_the_whole_corpus():
    assert set(GOLDEN) == {f"{s.package}/{s.name}/{i}" for s in ALL for i in s.impls}
    assert len({key.rsplit("/", 1)[0] for key in GOLDEN}) >= 60


def test_every_attention_is_a_site_or_an_exception_with_a_reason():
    for spec in ALL:
        for impl in spec.impls:
            found = GOLDEN[f"{spec.package}/{spec.name}/{impl}"]
            assert set(found["declined"]) <= set(spec.why)
            assert found["sites"] == found["true"] or spec.why
