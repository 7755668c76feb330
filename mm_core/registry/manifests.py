"""File lists that were read once, kept on this disk under their own hash."""

from __future__ import annotations

import contextlib
import re
import uuid
from pathlib import Path

from mm_core.schemas import Manifest, ModelEntry, sha256_hex

_SHA256 = re.compile(r"[0-9a-f]{64}")


class KeptManifests:
    """The manifests in `folder`; None keeps none. One that is damaged counts as not there."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def get(self, entry: ModelEntry) -> Manifest | None:
        """The file list of a version, if it is kept whole."""
        path = self._path(entry)
        try:
            data = b"" if path is None else path.read_bytes()
        except OSError:
            return None
        return Manifest.from_bytes(data) if sha256_hex(data) == entry.manifest else None

    def keep(self, entry: ModelEntry, manifest: Manifest) -> None:
        """Keep the file list of a version, as far as the disk lets us."""
        path, data = self._path(entry), manifest.to_bytes()
        if path is None or sha256_hex(data) != entry.manifest:
            return
        staged = path.with_name(f".{uuid.uuid4().hex}.new")
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                staged.write_bytes(data)
                staged.replace(path)
            except OSError:
                staged.unlink(missing_ok=True)
                raise

    def _path(self, entry: ModelEntry) -> Path | None:
        """Where it is kept; none for a hash that is none: it is a stranger's text."""
        if self._folder is None or not _SHA256.fullmatch(entry.manifest or ""):
            return None
        return self._folder / f"{entry.manifest}.json"
