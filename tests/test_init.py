"""The front of the package: every public name is loaded from its home when first used."""

from __future__ import annotations

import importlib
import tomllib

import house
import pytest

import attnpass


@pytest.mark.parametrize("name", attnpass.__all__)
def test_every_public_name_is_that_of_its_home(name):
    home = importlib.import_module(f"attnpass.{attnpass._HOME[name]}")
    assert getattr(attnpass, name) is getattr(home, name)
    assert name in dir(attnpass)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'attnpass' has no attribute 'flash'"):
        _ = attnpass.flash


def test_the_version_is_that_of_the_package():
    project = tomllib.loads((house.ROOT / "pyproject.toml").read_text())["project"]
    assert attnpass.__version__ == project["version"]
