"""Signatures are made of what the manifest says, and kept where the version is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mm_core.exceptions import NotFoundError, PluginError, SignatureError, UsageError
from mm_core.registry import ModelRegistry
from mm_core.schemas import Manifest, ModelEntry, sha256_hex
from mm_core.signatures.checking import (
    CheckedSignature,
    SignatureState,
    Signers,
    check_signatures,
    differences,
    signer_for,
)
from mm_core.signatures.port import Identity, Signed, Signer, SigningKey, Statement, TrustedKeys
from mm_core.signatures.shelf import Bundle, brought, keep, kept
from mm_core.sink import Sink

logger = logging.getLogger(__name__)

DEFAULT = "openssf"
"""The form in which signatures are made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSignature:
    """A version that is signed now. `made` is False where the same key had signed it before."""

    entry: ModelEntry
    signer: Identity
    key: str
    made: bool

    def to_json(self) -> dict[str, Any]:
        """The signature as JSON data."""
        return {
            "entry": self.entry.to_json(),
            "signer": self.signer.to_json(),
            "key": self.key,
            "made": self.made,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedVersion:
    """What came of looking at all signatures over one version."""

    entry: ModelEntry
    signatures: tuple[CheckedSignature, ...]

    @property
    def ok(self) -> bool:
        """Whether one of them counts."""
        return any(one.state is SignatureState.VALID for one in self.signatures)

    @property
    def reason(self) -> str | None:
        """Why none of them counts."""
        if self.ok:
            return None
        reasons = dict.fromkeys(one.reason for one in self.signatures if one.reason)
        return "; ".join(reasons) or "it is not signed"

    def to_json(self) -> dict[str, Any]:
        """The version as JSON data."""
        return {
            "model_id": self.entry.model_id,
            "version": self.entry.version,
            "ok": self.ok,
            "reason": self.reason,
            "signatures": [one.to_json() for one in self.signatures],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureBook:
    """The signatures of the versions in one registry, in the forms that `signers` know."""

    registry: ModelRegistry
    signers: Signers

    def sign(self, entry: ModelEntry, key: SigningKey) -> NewSignature:
        """Sign `entry`. What the same key has signed already is not signed again.

        Raises as `Signer.sign`, and `NotFoundError` for a version without a manifest.
        """
        files, signer = sha256_by_path(self.registry.manifest(entry)), self._signer()
        for bundle in self._kept(entry):
            own = _own(signer, bundle, key)
            if own is not None and not differences(own.statement, files):
                return NewSignature(entry=entry, signer=own.identity, key=bundle.place, made=False)
        name = f"{entry.model_id}@{entry.version}"
        data = signer.sign(Statement(name=name, files=files), key)
        return self._keep(entry, data, signer.read(data).identity)

    def attach(self, entry: ModelEntry, data: bytes) -> NewSignature:
        """Keep a bundle over `entry` that was made elsewhere.

        Raises `SignatureError` for one that is none, or is of other files.
        """
        signer = signer_for(data, self.signers)
        if signer is None:
            raise SignatureError("it is no signature in a form that any plugin knows")
        signed = signer.read(data)
        differ = differences(signed.statement, sha256_by_path(self.registry.manifest(entry)))
        if differ:
            raise SignatureError(
                f"it is no signature over {entry.model_id}@{entry.version}: {differ}",
                hint="sign the folder that `mm get -o` made, without any other file in it",
            )
        return self._keep(entry, data, signed.identity)

    def check(self, entry: ModelEntry, trusted: TrustedKeys) -> SignedVersion:
        """All signatures over `entry`, held against its manifest; proven by those of `trusted`."""
        manifest = self.registry.manifest(entry)
        bundles = bundles_over(self.registry.sink, entry, manifest)
        found = check_signatures(bundles, sha256_by_path(manifest), self.signers, trusted)
        return SignedVersion(entry=entry, signatures=found)

    def _kept(self, entry: ModelEntry) -> list[Bundle]:
        return kept(self.registry.sink, entry.manifest or "")

    def _keep(self, entry: ModelEntry, data: bytes, identity: Identity) -> NewSignature:
        if entry.manifest is None:
            raise NotFoundError(f"{entry.model_id}@{entry.version} has no manifest to sign")
        key = keep(self.registry.sink, entry.manifest, data)
        return NewSignature(entry=entry, signer=identity, key=key, made=True)

    def _signer(self) -> Signer:
        kind = self.signers.get(DEFAULT)
        if kind is None:
            raise PluginError(
                f"no plugin makes signatures of the form {DEFAULT!r}",
                hint="see `mm plugins list`, and MM_DISABLE_PLUGINS",
            )
        return kind()


def bundles_over(sink: Sink, entry: ModelEntry, manifest: Manifest) -> list[Bundle]:
    """All that may be signatures over a version. Costs a listing, and a read of each."""
    return [*kept(sink, entry.manifest or ""), *brought(sink, manifest)]


def look_at_signatures(
    sink: Sink,
    entry: ModelEntry,
    manifest: Manifest,
    *,
    signers: Callable[[], Signers],
    trusted: Callable[[], TrustedKeys],
) -> tuple[CheckedSignature, ...]:
    """What is to be shown of the signatures over a version.

    `signers` and `trusted` are asked only where there is one. Where those who are trusted
    cannot be read, or a library is missing, nothing is proven, and that is no error.
    """
    bundles = bundles_over(sink, entry, manifest)
    if not bundles:
        return ()
    files, forms = sha256_by_path(manifest), signers()
    try:
        return check_signatures(bundles, files, forms, trusted())
    except UsageError as error:
        logger.warning("The signatures cannot be verified: %s", error)
        return check_signatures(bundles, files, forms, TrustedKeys())


def bring_along(
    sink: Sink, manifest: Manifest, bundles: Sequence[bytes], signers: Callable[[], Signers]
) -> None:
    """Keep those of `bundles` that are over the files of `manifest`, which came with them.

    Others are left behind, with a warning: of a part of the files, say.
    """
    if not bundles:
        return
    sha256, files = sha256_hex(manifest.to_bytes()), sha256_by_path(manifest)
    for data in bundles:
        why = _why_not_over(data, files, signers())
        if why is None:
            keep(sink, sha256, data)
        else:
            name = f"{manifest.model_id}@{manifest.version}"
            logger.warning("A signature does not go along with %s: %s", name, why)


def _why_not_over(data: bytes, files: Mapping[str, str], signers: Signers) -> str | None:
    """How a bundle is not over `files`; None for one that is, or that nobody can read."""
    signer = signer_for(data, signers)
    if signer is None:
        return None
    try:
        return str(differences(signer.read(data).statement, files)) or None
    except SignatureError as error:
        return str(error)


def _own(signer: Signer, bundle: Bundle, key: SigningKey) -> Signed | None:
    """What `bundle` says, if `key` has signed it."""
    try:
        return signer.verify_own(bundle.data, key) if signer.answers(bundle.data) else None
    except SignatureError:
        return None


def sha256_by_path(manifest: Manifest) -> dict[str, str]:
    """What is signed of a version: the sha256 of each file, by its path."""
    return {file.path: file.sha256 for file in manifest.files}
