"""Whose a module, a function or a class is: the user's, or an installed package's."""

from __future__ import annotations

import functools
import site
import sys
import sysconfig
from pathlib import Path
from types import FunctionType, ModuleType

OURS = "attnpass"
"""Our own package: the digests of its sources are parts of the keys by themselves."""


@functools.cache
def installed_folders() -> tuple[str, ...]:
    """Folders of the standard library and of installed packages, each with a slash at the end."""
    paths = sysconfig.get_paths()
    found = [paths[k] for k in ("stdlib", "platstdlib", "purelib", "platlib")]
    found += [*site.getsitepackages(), site.getusersitepackages()]
    both = {*found, *(str(Path(p).resolve()) for p in found)}
    return tuple(sorted(f"{p}/" for p in both))


def is_installed(file: str | Path) -> bool:
    """Whether a file belongs to the standard library or to an installed package."""
    path = Path(file)
    return any(str(p).startswith(installed_folders()) for p in (path, path.resolve()))


def source_of(module: ModuleType) -> Path | None:
    """The file of a module that is not installed; None for others, and where there is no file."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or is_installed(file) or not Path(file).is_file():
        return None
    return Path(file)


def is_library(module: object) -> bool:
    """Whether the name of a module is that of an installed package, or of ours.

    The file decides: a user's module may have the name of one of the standard library.
    """
    name = str(module)
    top = name.split(".")[0]
    if top in (OURS, "__main__"):  # whoever was started, the user's functions may be in __main__
        return top == OURS
    found = sys.modules.get(name) or sys.modules.get(top)
    file = getattr(found, "__file__", None)
    if isinstance(file, str):
        return is_installed(file)
    return top in sys.builtin_module_names or top in sys.stdlib_module_names


def is_named(x: type | FunctionType) -> bool:
    """Whether ``x`` is a library's function or class, and what its name leads to."""
    # functools.wraps gives a wrapper the names of what it wraps
    home = x.__globals__.get("__name__") if isinstance(x, FunctionType) else x.__module__
    if not is_library(home):
        return False
    found: object = sys.modules.get(str(home))
    for name in x.__qualname__.split("."):
        found = getattr(found, "__dict__", {}).get(name)
        found = getattr(found, "__func__", getattr(found, "fget", found))
    return found is x
