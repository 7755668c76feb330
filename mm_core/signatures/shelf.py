"""Where the signatures of versions stand: beside them below ``.mm/``, or among their files.

Those that were made here, or came along with a copy, lie under the sha256 of the
version's manifest, each named by its own content, and are never changed. Those that a
source brought as a file of the model stay what they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from mm_core.exceptions import IntegrityError
from mm_core.registry.deadline import Deadline
from mm_core.registry.layout import SIGNATURE_PREFIX, create_once, signature_key
from mm_core.schemas import Manifest, StoredObject, sha256_hex
from mm_core.sink import Sink, read_if_exists

LARGEST = 64 << 20
"""A larger object, in bytes, is no bundle: it would list some 300,000 files."""

SUFFIX = ".sig"
BESIDE = "model.sig"
"""The name under which other programs look for a bundle beside the files."""

PATIENCE = 60.0

_KEY = re.compile(
    re.escape(SIGNATURE_PREFIX) + r"(?P<manifest>[0-9a-f]{64})/(?P<name>[0-9a-f]{12})\.json"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """One signature: its bytes, and the key or path that they were read from.

    `path` is its path in the model, where it is one of the version's files.
    """

    data: bytes = field(repr=False)
    place: str
    path: str | None = None


def keep(sink: Sink, manifest: str, data: bytes) -> str:
    """Keep a bundle for the version whose manifest has this sha256; its key. Again is safe."""
    key = signature_key(manifest, sha256_hex(data))
    if not create_once(sink, key, data, Deadline(PATIENCE)):
        raise IntegrityError(
            f"{key} at {sink.root} holds other bytes than its name says",
            hint="delete that object and try again",
        )
    return key


def kept(sink: Sink, manifest: str) -> list[Bundle]:
    """The bundles that are kept for a version, the oldest first."""

    def listed() -> list[StoredObject]:
        return list(sink.list(f"{SIGNATURE_PREFIX}{manifest}/"))

    found = Deadline(PATIENCE).persist(listed)
    found.sort(key=lambda stored: (stored.modified, stored.key))
    return list(_read(sink, ((stored.key, stored.size, None) for stored in found)))


def brought(sink: Sink, manifest: Manifest) -> list[Bundle]:
    """The files of a version that may be bundles over the others, by their names."""
    files = (f for f in manifest.files if could_be_bundle(f.path, f.size))
    return list(_read(sink, ((file.key, file.size, file.path) for file in files)))


def could_be_bundle(path: str, size: int | None) -> bool:
    """Whether a file of a model may be a bundle over the others: only those at its top."""
    return path.endswith(SUFFIX) and "/" not in path and size is not None and size <= LARGEST


def all_kept(sink: Sink) -> dict[str, list[StoredObject]]:
    """All bundles of a store, by the sha256 of the manifest. One listing."""
    found: dict[str, list[StoredObject]] = {}
    for stored in Deadline(PATIENCE).persist(lambda: list(sink.list(SIGNATURE_PREFIX))):
        manifest = manifest_of_key(stored.key)
        if manifest is not None:
            found.setdefault(manifest, []).append(stored)
    return found


def manifest_of_key(key: str) -> str | None:
    """The sha256 of the manifest that a bundle is kept for; None for a key that is no bundle's."""
    match = _KEY.fullmatch(key)
    return match["manifest"] if match else None


def name_of(key: str) -> str:
    """The name of a bundle: the same wherever it is kept."""
    return key.rpartition("/")[2]


def is_whole(key: str, data: bytes) -> bool:
    """Whether the bytes under the key of a bundle are those that it was made with."""
    match = _KEY.fullmatch(key)
    return match is not None and sha256_hex(data).startswith(match["name"])


def _read(sink: Sink, wanted: Iterable[tuple[str, int, str | None]]) -> Iterator[Bundle]:
    """Those of `wanted` that are there still: a collection may be at work."""
    for key, size, path in wanted:
        if size > LARGEST:
            continue
        data = Deadline(PATIENCE).persist(partial(read_if_exists, sink, key))
        if data is not None:
            yield Bundle(data=data, place=path or key, path=path)
