"""What the groups of small packages share: a model by its dotted name, and its inputs."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from zoo import EAGER, Built, add, noise, tokens

Inputs = Callable[[], tuple[Any, ...]]
LINEAR = "linear attention: softmax of queries or of keys alone"


def model(
    package: str, path: str, options: dict[str, Any], inputs: Inputs, name: str = "", **more: Any
) -> None:
    """Register ``path(**options)``; a dict at the end of the inputs are its keywords."""
    module, _, cls = path.rpartition(".")

    def build(impl: str) -> Built:
        made = getattr(import_module(module), cls)(**options)
        found = inputs()
        if isinstance(found[-1], dict):
            return made, found[:-1], found[-1]
        return made, found, {}

    add(package, name or cls, build, EAGER, **more)


def features() -> tuple[Any, ...]:
    """Two sequences of 16 features of size 32."""
    return (noise(2, 16, 32),)


def words() -> tuple[Any, ...]:
    """Two sequences of 16 tokens."""
    return (tokens(2, 16),)


def image(size: int = 32, channels: int = 3, batch: int = 1) -> Inputs:
    """Square images."""
    return lambda: (noise(batch, channels, size, size),)
