"""The content of any Python object as a digest: equal digests only where the contents are equal.

Soundness. Claim: two objects with one digest behave alike wherever they are called or read, on one
machine with the same installed packages. The conditions:

1. A value counts with its type, a tensor or an array with dtype, shape and every byte.
2. An object counts with its class and with all of its state: what ``pickle`` would save
   (``__reduce_ex__``), and for a user's own class also ``__dict__``, which a ``__getstate__`` of
   its own may hide.
3. A function of the user counts with its bytecode, constants, defaults, attributes, what it closes
   over, and the globals and the attributes of modules that it names; a class with its attributes
   and its bases. Where names are made at run time (``globals()``, ``getattr``, ``eval``), all
   globals of the module count.
4. A function or a class of an installed package counts by its name, if that name leads to it;
   the package's version is another part of the key. Any other is taken for the user's.
5. An object that shows no content (a generator, an open file, a socket) gets a digest that no
   other process has: it is a miss everywhere else. ``Walk.opaque`` names it.
6. The order of a set and line numbers do not count; a circle is closed by the distance to the
   object that is met again.

Not covered: what a function finds by other means than names (``gc``, ``sys._getframe``,
``ctypes``), edits to installed packages, state that an extension type leaves out of its pickle.
"""

from __future__ import annotations

import hashlib
import os
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FunctionType

from attnpass.fingerprint.code_parts import Names
from attnpass.fingerprint.parts import Opaque, Parts, parts, plain_text

PROCESS = uuid.uuid4().hex
"""With the number of a fork, a part of digests that no other process may meet."""


@dataclass
class _Open:
    """An object whose parts are being read."""

    key: object
    found: Parts
    rest: Iterator[object]
    digests: list[str] = field(default_factory=list)

    def digest(self) -> str:
        """The digest, once all parts are read."""
        digests = sorted(self.digests) if self.found.unordered else self.digests
        return _hash(" ".join([self.found.label, *digests]))


class Walk:
    """Digests of objects; an object that is met twice is read once.

    Attributes:
        opaque: names of the types whose objects show no content.
        modules: names of the modules whose functions and classes were met.
    """

    def __init__(self) -> None:
        self.opaque: set[str] = set()
        self.modules: set[str] = set()
        # the objects are kept: the id of one that is gone would soon be another's
        self._known: dict[object, tuple[object, str]] = {}

    def digest(self, x: object) -> str:
        """The digest of all that ``x`` consists of, 32 hex digits.

        The walk needs no recursion, so that a chain of any length is read.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some iterators will lose their pickle
            return self._read(x)

    def _read(self, x: object) -> str:
        opened: list[_Open] = []
        above: dict[object, int] = {}
        found = self._enter(x, opened, above)
        while opened:
            top = opened[-1]
            if found is not None:
                top.digests.append(found)
            found = None
            for part in top.rest:
                found = self._enter(part, opened, above)
                break
            else:
                found = top.digest()
                opened.pop()
                del above[top.key]
                self._known[top.key] = (self._known[top.key][0], found)
        assert found is not None
        return found

    def _enter(self, x: object, opened: list[_Open], above: dict[object, int]) -> str | None:
        """The digest where it is known at once; else ``x`` is opened and the answer is None."""
        plain = plain_text(x)
        if plain is not None:
            return _hash(plain)
        key: object = x if type(x) is Names else id(x)
        if key in above:
            return f"^{len(opened) - above[key]}"
        if key in self._known:
            return self._known[key][1]
        try:
            found = parts(x)
        except Exception:  # whatever an object of the user raises when it is looked at
            found = Opaque(f"{type(x).__module__}.{type(x).__qualname__}")
        if isinstance(found, Opaque):
            self.opaque.add(found.name)
            return _hash(f"{PROCESS} {os.getpid()} {found.name} {id(x)}")
        if isinstance(x, (type, FunctionType)):
            self.modules.add(str(x.__module__))
        if isinstance(x, FunctionType):  # functools.wraps gives it the module of what it wraps
            self.modules.add(str(x.__globals__.get("__name__")))
        self._known[key] = (x, "")
        above[key] = len(opened)
        opened.append(_Open(key, found, iter(found.children)))
        return None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
