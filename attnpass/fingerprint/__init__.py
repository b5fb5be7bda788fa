"""Fingerprints: text or digests that change with a value, a function, a graph or our sources.

They are parts of cache keys and of a plan's identity. The room may import the graph's nodes.
"""

from __future__ import annotations

from attnpass.fingerprint.callables import behaviour
from attnpass.fingerprint.graphs import computation
from attnpass.fingerprint.sources import kernels_digest, recovery_digest
from attnpass.fingerprint.values import digest, digest_weights

__all__ = [
    "behaviour",
    "computation",
    "digest",
    "digest_weights",
    "kernels_digest",
    "recovery_digest",
]
