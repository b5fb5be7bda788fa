"""Every error of ours has one base, which the command line turns into one line."""

from __future__ import annotations

import inspect

import attnpass
from attnpass import errors

OURS = {n: x for n, x in vars(errors).items() if inspect.isclass(x)}


def test_all_errors_have_one_base_and_a_sentence():
    assert len(OURS) > 5
    for name, error in OURS.items():
        assert issubclass(error, errors.AttnpassError), name
        assert error.__doc__ and "\n" not in error.__doc__
    assert errors.AttnpassError.__bases__ == (Exception,)


def test_the_front_offers_those_that_a_caller_catches():
    for name in set(OURS) & set(attnpass.__all__):
        assert getattr(attnpass, name) is OURS[name]
    assert "AttnpassError" in attnpass.__all__
