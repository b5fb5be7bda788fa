"""Launch parameters that a plan carries to other machines, stored per context of measurement."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

from attnpass.kernels.tile import Tile, Tiles

log = logging.getLogger("attnpass")


def add_tiles(carried: dict[str, Any], context: Mapping[str, object], tiles: Tiles) -> None:
    """Put tiles that were measured in ``context`` into ``carried``, as plain JSON types."""
    row = {"context": dict(context), "tiles": {k: tile.as_dict() for k, tile in tiles.items()}}
    carried[hashlib.sha256(_text(context).encode()).hexdigest()[:16]] = row


def tiles_for(carried: Mapping[str, Any], context: Mapping[str, object]) -> dict[str, Tile]:
    """The tiles measured in ``context``; none where it differs, or where they are broken."""
    for row in carried.values():
        try:
            if _text(row["context"]) == _text(context):
                return {k: Tile(**tile) for k, tile in row["tiles"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            log.warning("the plan's tiles are not used: %s", error)
    return {}


def _text(context: Mapping[str, object]) -> str:
    return json.dumps(context, sort_keys=True)
