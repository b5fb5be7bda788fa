"""Equivalent spellings give one record and pass the round trip; near misses are declined.

A sample; ``make fuzz`` runs ten thousand graphs. Beside the tests of single modules it shows that
spellings may be combined at will.
"""

from dataclasses import replace

import fuzz
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_attention import cases as random_cases

spellings = st.fixed_dictionaries({k: st.sampled_from(v) for k, v in random_cases.CHOICES.items()})
cases = spellings.map(lambda chosen: random_cases.settle(dict(chosen)))
misses = st.tuples(spellings, st.sampled_from(random_cases.MISSES)).map(
    lambda pair: random_cases.settle(dict(pair[0]), pair[1])
)
loose = st.tuples(spellings, st.sampled_from(random_cases.LOOSE)).map(
    lambda pair: random_cases.settle(dict(pair[0]), loose=pair[1])
)


def examples(count):
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(
        max_examples=count, deadline=None, derandomize=True, suppress_health_check=checks
    )


@pytest.mark.slow
@examples(100)
@given(cases)
def test_every_spelling(case):
    assert fuzz.check(case) == ""


@pytest.mark.slow
@examples(60)
@given(misses)
def test_every_near_miss(case):
    assert fuzz.check(case) == ""


@pytest.mark.slow
@examples(60)
@given(loose)
def test_every_step_that_no_reader_knows(case):
    assert fuzz.check(case) == ""


@pytest.mark.slow
@examples(15)
@given(st.one_of(cases, loose, misses))
def test_through_dynamo(case):
    assert fuzz.check(case, dynamo=True) == ""


PLAIN = {k: v[0] for k, v in random_cases.CHOICES.items()} | {"source": "separate", "mask": "both"}


@pytest.mark.parametrize("what", ["scale", "mask", "bias"])
def test_the_check_can_fail(what, monkeypatch):
    """A matcher that reads one thing wrongly is caught by the same check."""
    from attnpass.matching import verdicts

    read = verdicts.read_region

    def wrong(*args):
        found = read(*args)
        if what == "scale":
            found.logits.scale *= 1.5
            return replace(found, site=replace(found.site, scale=found.site.scale * 1.5))
        if what == "mask":
            found.logits.keeps.clear()
        else:
            found.logits.biases.clear()
        return found

    case = random_cases.settle(PLAIN | ({"mask": "bias"} if what == "bias" else {}), "")
    assert fuzz.check(case) == ""
    monkeypatch.setattr(verdicts, "read_region", wrong)
    assert fuzz.check(case) != ""
