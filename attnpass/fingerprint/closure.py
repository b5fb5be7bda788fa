"""The user's source files that a task may run: by import, from the modules that it starts in.

Soundness. Claim: a changed byte in a file of the user that is imported when the key is made, and
that the task can reach, changes ``Closure.sources``. The conditions:

1. A module is the user's unless its file lies in the standard library, among the installed
   packages, or in attnpass.
2. Each module brings in the modules that its text imports anywhere, with their parent packages,
   those whose full name stands in it as a string, and those that its globals are, or come from.
3. A file counts with every byte: comments, too, since ``torch.jit`` reads some of them.

Not covered: a module that is imported later, by a name made at run time (``reads.py`` sees its
file); a file that is edited between its import and the key; modules in a zip file; files of
installed packages, for which their versions stand (``Closure.libraries``).
"""

from __future__ import annotations

import ast
import hashlib
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

from attnpass.fingerprint.origin import OURS, source_of


@dataclass(frozen=True)
class Closure:
    """The user's modules that were reached, with their files, and the names that they import."""

    files: dict[str, Path]
    imported: frozenset[str]
    words: frozenset[str]

    @cached_property
    def sources(self) -> str:
        """Digest of all files with the names of their modules, 16 hex digits."""
        h = hashlib.sha256()
        for name, file in sorted(self.files.items()):
            # a task's file has a module's name that holds its folder
            shown = file.name if name.startswith(f"{OURS}_task_") else name
            h.update(f"{shown} ".encode() + hashlib.sha256(file.read_bytes()).digest())
        return h.hexdigest()[:16]

    @property
    def libraries(self) -> dict[str, str]:
        """Versions of the installed packages that the sources import."""
        tops = {name.split(".")[0] for name in self.imported} | {"numpy", "torch"}
        found = {top: _version(top) for top in sorted(tops - sys.stdlib_module_names - {OURS})}
        return {top: text for top, text in found.items() if text}

    @property
    def variables(self) -> dict[str, str]:
        """Digests of the environment variables whose names stand in the sources as strings.

        The variable ``_`` is the shell's own. Only digests, since some values are secrets.
        """
        names = sorted(self.words.intersection(os.environ) - {"_"})
        return {n: hashlib.sha256(os.environ[n].encode()).hexdigest()[:16] for n in names}


def closure(starts: Iterable[str]) -> Closure:
    """The closure of the modules of these names, as far as they are loaded and the user's.

    A module of attnpass counts where it is one of ``starts`` (the built-in task).
    """
    files: dict[str, Path] = {}
    imported, words, first = set[str](), set[str](), set(starts)
    left = list(first)
    while left:
        name = left.pop()
        module = sys.modules.get(name)
        ours = name.split(".")[0] == OURS and name not in first
        file = None if module is None or ours or name in files else source_of(module)
        if module is None or file is None:
            continue
        files[name] = file
        tree = _tree(file)
        found, said = set(_imports(tree, module)), set(_strings(tree))
        imported |= found
        words |= said
        left += [*found, *said.intersection(sys.modules), *_origins(module)]
    return Closure(files, frozenset(imported), frozenset(words))


def _tree(file: Path) -> ast.Module:
    """The syntax of a source; of an extension module, nothing."""
    with suppress(SyntaxError, UnicodeDecodeError, ValueError):
        return ast.parse(file.read_bytes())
    return ast.Module([], [])


def _imports(tree: ast.Module, module: ModuleType) -> Iterator[str]:
    """The names of modules that a source may import, with those of their parents."""
    package = (getattr(module, "__package__", None) or "").split(".")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[: i + 1]) for i in range(len(parts)))


def _strings(tree: ast.Module) -> Iterator[str]:
    """The strings in a source that may be the name of a module or of a variable."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _origins(module: ModuleType) -> Iterator[str]:
    """The modules that the globals of a module are, or were defined in, and its parents."""
    for x in list(vars(module).values()):
        home = x.__name__ if isinstance(x, ModuleType) else getattr(x, "__module__", None)
        if isinstance(home, str):
            yield home
    parts = module.__name__.split(".")
    yield from (".".join(parts[:i]) for i in range(1, len(parts)))


def _version(top: str) -> str:
    """The version of a package, ``""`` where it has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some packages will lose the attribute
        found = getattr(sys.modules.get(top), "__version__", None)
    if isinstance(found, str):
        return found
    try:
        return version(top)
    except (PackageNotFoundError, ValueError):
        return ""
