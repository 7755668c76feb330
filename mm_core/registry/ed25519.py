"""ed25519 by the package `cryptography`, which is imported when a key is first needed."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING

from mm_core.exceptions import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

_SIZE = 32


class Ed25519:
    """Verifies signatures."""

    def __init__(self) -> None:
        self._public: dict[str, Ed25519PublicKey] = {}

    def verify(self, key: str, data: bytes, signature: bytes) -> bool:
        """Whether the signature is right."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        public = self._public.get(key)
        if public is None:
            public = Ed25519PublicKey.from_public_bytes(base64.b64decode(key))
            self._public[key] = public
        try:
            public.verify(signature, data)
        except InvalidSignature:
            return False
        return True


class FileSigner:
    """Signs with a private key that was in a file."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self._key = _as_text(private.public_key())

    @property
    def key(self) -> str:
        """The public key, as base64 of its 32 bytes."""
        return self._key

    def sign(self, data: bytes) -> bytes:
        """The signature: 64 bytes."""
        return self._private.sign(data)


def load_signer(path: str) -> FileSigner:
    """The signer with the key in a file: PEM (PKCS 8), not encrypted. `ConfigError` if it is none.

    `MissingExtraError` without the extra ``sign``.
    """
    _require()
    data = _read(path, "registry.signing_key")
    private = _private_key(data)
    if private is None:
        raise ConfigError(
            f"registry.signing_key: {path} holds no ed25519 private key in PEM form, "
            "or one that is encrypted",
            hint="make one with `openssl genpkey -algorithm ed25519 -out KEY.pem`",
        )
    return FileSigner(private)


def load_public_key(text: str) -> str:
    """A trusted key, as base64 of its 32 bytes: `text`, or what is in the file of that name.

    The file holds such base64, or PEM of the public key (or of the private one).
    `ConfigError` if it does not, `MissingExtraError` without the extra ``sign``.
    """
    _require()
    if _is_key(text):
        return text
    data = _read(text, "registry.trusted_keys")
    inside = data.decode("ascii", "replace").strip()
    if _is_key(inside):
        return inside
    private = _private_key(data)
    public = _public_key(data) if private is None else private.public_key()
    if public is None:
        raise ConfigError(
            f"registry.trusted_keys: {text} holds no ed25519 public key",
            hint="write it with `openssl pkey -in KEY.pem -pubout -out KEY.pub`",
        )
    return _as_text(public)


def _private_key(data: bytes) -> Ed25519PrivateKey | None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, Ed25519PrivateKey) else None


def _public_key(data: bytes) -> Ed25519PublicKey | None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, Ed25519PublicKey) else None


def _as_text(public: Ed25519PublicKey) -> str:
    return base64.b64encode(public.public_bytes_raw()).decode()


def _is_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == _SIZE
    except ValueError:
        return False


def _read(path: str, setting: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"{setting}: {path} cannot be read: {error.strerror}") from error


def _require() -> None:
    try:
        import cryptography.hazmat.primitives.asymmetric.ed25519  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "a signed registry needs the package cryptography",
            hint="pip install 'model-manager[sign]'",
        ) from error
