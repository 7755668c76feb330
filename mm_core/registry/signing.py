"""Signatures on commits and checkpoints: whoever trusts some keys believes nothing else.

The log's order and the chain show that nothing was changed; signatures show by whom
it was made. Both are optional. A signature is ed25519 over canonical JSON, and
stands beside what it signs (`docs/storage-format.md`).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from mm_core.exceptions import ConfigError, IntegrityError
from mm_core.registry.seal import CHECK
from mm_core.schemas import canonical_json, sha256_hex

SIGNATURE = "signature"
"""The field with the signature: ``{"key": …, "value": …}``, both base64."""

_CHECKPOINT = b"model-manager checkpoint "


class Signer(Protocol):
    """What holds a private key."""

    @property
    def key(self) -> str:
        """The public key, as base64 of its 32 bytes."""
        ...

    def sign(self, data: bytes) -> bytes:
        """The signature of `data`."""
        ...


class Verifier(Protocol):
    """What knows how to verify."""

    def verify(self, key: str, data: bytes, signature: bytes) -> bool:
        """Whether `signature` of `data` was made with the private key that goes with `key`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Where keys are: the file of the private one that signs, files or base64 of those trusted."""

    signing_key: str | None = None
    trusted_keys: tuple[str, ...] = ()


class Trust:
    """What one process signs with, and whom it believes. Keys are read when they are needed."""

    def __init__(self, keys: Keys | None = None) -> None:
        self._keys = keys or Keys()

    @property
    def checks(self) -> bool:
        """Whether only what a trusted key has signed is believed."""
        return bool(self._keys.trusted_keys)

    @property
    def signs(self) -> bool:
        """Whether there is a key to sign with."""
        return self._keys.signing_key is not None

    @property
    def of_checkpoints(self) -> Trust:
        """As this one, but that it believes any commit: what it reads is to be vouched for."""
        return _OfCheckpoints(self._keys)

    def own_folder(self, folder: Path) -> Path:
        """Where in `folder` is kept what was believed: with other keys it may not have been."""
        if not self.checks:
            return folder
        keys = "\n".join(sorted(self._trusted))
        return folder / f"trusted-{sha256_hex(keys.encode())[:16]}"

    def refuse_to_write_unsigned(self) -> None:
        """Raise `ConfigError` if what this process commits would not be believed by itself."""
        if not self.checks:
            return
        trusted = self._trusted
        if self._signer is None:
            raise ConfigError(
                "registry.trusted_keys is set, so that commits without a signature are refused, "
                "and there is no key to sign this one with",
                hint="set registry.signing_key to the file of a trusted private key",
            )
        if self._signer.key not in trusted:
            raise ConfigError(
                f"the public key of registry.signing_key, {self._signer.key}, is not one of "
                "registry.trusted_keys",
                hint="add it there, and wherever this registry is read",
            )

    def signed(self, commit: Mapping[str, Any]) -> dict[str, Any]:
        """The commit with its signature; as it is where this process has no key."""
        if self._signer is None:
            return dict(commit)
        return {**commit, SIGNATURE: self._signature_of(_body(commit))}

    def check_commit(self, raw: Mapping[str, Any], seq: int, root: str) -> None:
        """Raise `IntegrityError` unless a trusted key has signed this commit."""
        if self.checks and (why := self._doubt(_body(raw), raw.get(SIGNATURE))):
            raise IntegrityError(
                f"commit {seq} of the registry's log at {root} is not to be believed: {why}",
                hint="find out who made it; whoever is to be trusted belongs into "
                "registry.trusted_keys, and signs with registry.signing_key",
            )

    def sign_checkpoint(self, sha256: str) -> dict[str, str] | None:
        """The signature of a checkpoint with this hash; None where this process has no key."""
        if self._signer is None:
            return None
        return self._signature_of(_CHECKPOINT + sha256.encode())

    def check_checkpoint(self, sha256: str, signature: Any) -> None:
        """Raise `IntegrityError` unless a trusted key has signed the checkpoint of this hash."""
        if self.checks and (why := self._doubt(_CHECKPOINT + sha256.encode(), signature)):
            raise IntegrityError(f"a checkpoint is not to be believed: {why}")

    def _signature_of(self, data: bytes) -> dict[str, str]:
        assert self._signer is not None
        value = base64.b64encode(self._signer.sign(data)).decode()
        return {"key": self._signer.key, "value": value}

    def _doubt(self, data: bytes, signature: Any) -> str | None:
        """Why `signature` does not make `data` credible; None if it does."""
        if signature is None:
            return "it is not signed"
        try:
            key, value = str(signature["key"]), base64.b64decode(signature["value"], validate=True)
        except (KeyError, TypeError, ValueError, binascii.Error):
            return "its signature cannot be read"
        if key not in self._trusted:
            return f"it was signed with the key {key[:64]}, which is not trusted"
        return None if self._verifier.verify(key, data, value) else "its signature is wrong"

    @cached_property
    def _signer(self) -> Signer | None:
        from mm_core.registry import ed25519

        return ed25519.load_signer(self._keys.signing_key) if self._keys.signing_key else None

    @cached_property
    def _trusted(self) -> frozenset[str]:
        from mm_core.registry import ed25519

        return frozenset(map(ed25519.load_public_key, self._keys.trusted_keys))

    @cached_property
    def _verifier(self) -> Verifier:
        from mm_core.registry import ed25519

        return ed25519.Ed25519()


class _OfCheckpoints(Trust):
    def check_commit(self, raw: Mapping[str, Any], seq: int, root: str) -> None:
        """Believe it."""


def _body(commit: Mapping[str, Any]) -> bytes:
    """What of a commit is signed: all but the signature and the checksum."""
    return canonical_json({k: v for k, v in commit.items() if k not in (SIGNATURE, CHECK)})
