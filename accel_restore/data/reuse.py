"""Images that existing stores hold already: a new store takes them over, and only the others are decoded."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from accel_restore.data.cache_folder import list_stores, lock_store
from accel_restore.data.store import Store
from accel_restore.data.store_file import SOURCE_BYTES, Format, StoredImage, digest_of, encode
from accel_restore.errors import UserError

UNKNOWN = bytes(SOURCE_BYTES)  # the source of an image without an identity


@dataclass(frozen=True, slots=True)
class Found:
    """An image in an existing store."""

    store: Store
    index: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.store.sizes[self.index].tolist()
        return height, width

    @property
    def dtype(self) -> np.dtype:
        """Of its source; that of the store can be wider."""
        return np.dtype(self.store.table.facts(self.index).dtype)

    def stored_as(self, format: Format) -> StoredImage | None:
        """Return the image for another store of the same dtype, None if it is damaged.

        With another codec it is encoded again.
        """
        facts = self.store.table.facts(self.index)
        try:
            if self.store.format == format and format.codec == "compact":
                return StoredImage(*self.store.encoded(self.index), facts)
            pixels = self.store[self.index]
        except UserError:
            return None
        return encode(pixels, facts, format) if digest_of(pixels) == facts.digest else None


def source_of(identity: Any) -> bytes:
    """Return what a store records of the identity of an image."""
    return UNKNOWN if identity is None else hashlib.sha256(json.dumps(identity).encode()).digest()[:SOURCE_BYTES]


def find_stored(cache: Path, sources: Sequence[bytes], channels: int) -> dict[bytes, list[Found]]:
    """Return where images are stored, by source. Of several stores, the one with most of the images comes first.

    The stores are not deleted while the result exists.
    """
    wanted, matches = set(sources) - {UNKNOWN}, []
    for listed in list_stores(cache):
        path = cache / f"{listed.name}.arrow"
        if listed.description.get("channels") != channels or (lock := lock_store(path)) is None:
            continue
        try:
            store = Store(path, channels, lock=lock)
        except (OSError, ValueError, KeyError):  # damaged
            continue
        if places := [(source, index) for index, source in enumerate(store.table.sources) if source in wanted]:
            matches.append((store, places))
    found: dict[bytes, list[Found]] = {}
    for store, places in sorted(matches, key=lambda match: -len(match[1])):
        for source, index in places:
            found.setdefault(source, []).append(Found(store, index))
    return found
