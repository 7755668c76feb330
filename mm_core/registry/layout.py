"""Where the registry's own objects lie, and how an object is made exactly once."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

from mm_core.exceptions import (
    AlreadyExistsError,
    IntegrityError,
    MMError,
    OfflineError,
    StorageError,
    TransientError,
)
from mm_core.registry.deadline import Deadline
from mm_core.schemas import canonical_json
from mm_core.sink import Sink, read_bytes, read_if_exists

FORMAT = "model-manager"
FORMAT_VERSION = 1

FORMAT_KEY = ".mm/format.json"
HINT_KEY = ".mm/hint.json"
LOG_PREFIX = ".mm/log/"
CHECKPOINT_PREFIX = ".mm/snap/"
PACK_PREFIX = ".mm/tail/"
PROBE_PREFIX = ".mm/probe/"
CLAIM_PREFIX = ".mm/claims/"
CONTENT_PREFIX = ".mm/by-sha256/"
SIGNATURE_PREFIX = ".mm/signatures/"


def log_key(seq: int) -> str:
    """The key of commit number `seq`."""
    return f"{LOG_PREFIX}{seq:012d}.json"


def manifest_key(sha256: str) -> str:
    """The key of the manifest whose bytes have this hash."""
    return f".mm/manifests/{sha256}.json"


def content_key(sha256: str) -> str:
    """The key of the hint where the bytes of this hash stand."""
    return f"{CONTENT_PREFIX}{sha256[:2]}/{sha256}"


def signature_key(manifest: str, sha256: str) -> str:
    """The key of the bundle with this hash, over the version whose manifest has that one."""
    return f"{SIGNATURE_PREFIX}{manifest}/{sha256[:12]}.json"


def claim_key(claim_id: str) -> str:
    """The key of the heartbeat of a claim."""
    return f"{CLAIM_PREFIX}{claim_id}"


def create_once(sink: Sink, key: str, data: bytes, deadline: Deadline) -> bool:
    """Make the object under `key`; True if it holds `data` now, False if it is another's.

    An answer may be lost, and a retry inside a client may meet its own first
    try, so what is stored is the only judge: after anything but a plain success
    it is read back. `TransientError` at the deadline means "in doubt".
    """
    while True:
        try:
            sink.create(key, data)
            return True
        except MMError as error:
            failure = error
        stored = deadline.persist(lambda: read_if_exists(sink, key))
        if stored is not None:
            return stored == data
        if isinstance(failure, OfflineError) or not isinstance(
            failure, (TransientError, AlreadyExistsError)
        ):
            raise failure
        if not deadline.pause(getattr(failure, "retry_after", None)):
            raise TransientError(f"it is not known whether {key} was made: {failure}") from failure


def probe_exclusive_create(sink: Sink, *, timeout: float = 30.0) -> None:
    """Raise `StorageError` unless the store has an exclusive create.

    Makes one small object twice under a random key, expects the second try to
    be refused and the first bytes to stand, and deletes it again. A registry on
    a store without this would lose commits without a word.
    """
    deadline = Deadline(timeout)
    deadline.persist(lambda: _probe(sink))


def _probe(sink: Sink) -> None:
    key = f"{PROBE_PREFIX}{uuid.uuid4().hex}"
    try:
        refused, stored = _was_refused(sink, key), read_bytes(sink, key)
        if stored not in (b"first", b"second"):
            raise TransientError(f"{key} at {sink.root} came back with other bytes than were sent")
        if not refused or stored == b"second":
            raise StorageError(
                f"the store at {sink.root} has no exclusive create: a second create of the same "
                "key was not refused, so commits of two writers would overwrite each other",
                hint="use a store that honours If-None-Match (S3) or ifGenerationMatch (GCS)",
            )
    finally:
        sink.delete([key])


def _was_refused(sink: Sink, key: str) -> bool:
    sink.create(key, b"first")
    try:
        sink.create(key, b"second")
    except AlreadyExistsError:
        return True
    return False


def read_format(sink: Sink, deadline: Deadline) -> dict[str, Any] | None:
    """What ``format.json`` says, None if there is none yet.

    `StorageError` if it is of a newer version, `IntegrityError` if it is not ours.
    """

    def read() -> bytes | None:
        return deadline.persist(lambda: read_if_exists(sink, FORMAT_KEY))

    return parse_format(sink, read(), read)


def parse_format(
    sink: Sink, data: bytes | None, again: Callable[[], bytes | None]
) -> dict[str, Any] | None:
    """As `read_format`, of bytes that were read already; None of None.

    Before they are refused they are read `again`: they may have been damaged on their way.
    """
    try:
        return _parsed_format(sink, data)
    except (IntegrityError, StorageError):
        return _parsed_format(sink, again())


def _parsed_format(sink: Sink, data: bytes | None) -> dict[str, Any] | None:
    if data is None:
        return None
    try:
        found = json.loads(data)
        name, version, _ = found["format"], int(found["version"]), str(found["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise _foreign(sink) from error
    if name != FORMAT:
        raise _foreign(sink)
    if version > FORMAT_VERSION:
        raise StorageError(
            f"the registry at {sink.root} has format version {version}; this release of "
            f"model-manager reads versions up to {FORMAT_VERSION}",
            hint="upgrade it: pip install --upgrade model-manager",
        )
    assert isinstance(found, dict)
    return found


def ensure_format(sink: Sink, deadline: Deadline) -> dict[str, Any]:
    """What ``format.json`` says; where there is none, the store is probed and it is made."""
    found = read_format(sink, deadline)
    if found is not None:
        return found
    deadline.persist(lambda: _probe(sink))
    made = {"format": FORMAT, "version": FORMAT_VERSION, "id": str(uuid.uuid4())}
    if create_once(sink, FORMAT_KEY, canonical_json(made), deadline):
        return made
    found = read_format(sink, deadline)
    assert found is not None
    return found


def _foreign(sink: Sink) -> IntegrityError:
    return IntegrityError(
        f"{FORMAT_KEY} at {sink.root} was not written by model-manager, or is damaged",
        hint="point the backend at another root",
    )
