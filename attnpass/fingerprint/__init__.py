"""Fingerprints: text or digests that change with a value, a function, a graph or a source file.

They are parts of cache keys and of a plan's identity. ``contents`` is all of a task: ``walk``
reads objects, ``closure`` the user's sources. ``reads`` hears which files are opened. The room may
import the graph's nodes.
"""

from __future__ import annotations

from attnpass.fingerprint.contents import Contents, contents
from attnpass.fingerprint.graphs import computation
from attnpass.fingerprint.items import batched_leaves, item_digests
from attnpass.fingerprint.reads import changed_file, digests_of, files_read
from attnpass.fingerprint.sources import kernels_digest, recovery_digest
from attnpass.fingerprint.values import content_digest, digest, digest_weights
from attnpass.fingerprint.walk import Walk

__all__ = [
    "Contents",
    "Walk",
    "batched_leaves",
    "changed_file",
    "computation",
    "content_digest",
    "contents",
    "digest",
    "digest_weights",
    "digests_of",
    "files_read",
    "item_digests",
    "kernels_digest",
    "recovery_digest",
]
