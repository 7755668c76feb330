"""Keys on elliptic curves, by `cryptography`: read from files, to sign and to verify with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mm_core import ConfigError, Identity, MissingExtraError, SignatureError, SigningKey
from mm_plugins.sign._bundle import Envelope

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_pem_private_key,
        load_pem_public_key,
    )
except ImportError as error:
    raise MissingExtraError(
        "signatures over models need the package cryptography",
        hint="pip install 'model-manager[sign]'",
    ) from error

if TYPE_CHECKING:
    from collections.abc import Sequence

Private = ec.EllipticCurvePrivateKey
Public = ec.EllipticCurvePublicKey

_HASHES: dict[str, hashes.HashAlgorithm] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}
NOT_USABLE = (
    "none that OpenSSF model signatures know: those are on the curves P-256, P-384 and P-521"
)
"""What is said of another kind of key."""

_MAKE = (
    "make one with `openssl ecparam -name prime256v1 -genkey -noout -out KEY.pem`, and its public "
    "half with `openssl ec -in KEY.pem -pubout -out KEY.pub`"
)
_PASSWORD = "name the variable with its password by --password-env, or set signing.password"  # noqa: S105  # no password


def load_private_key(key: SigningKey) -> Private:
    """The key in a file. `ConfigError` for another kind of key, and for a wrong password."""
    data = read(key.file)
    password = None if key.password is None else key.password.encode()
    try:
        private = load_pem_private_key(data, password)
    except TypeError as error:  # one has a password, and the other has none
        if password is not None:
            return load_private_key(SigningKey(file=key.file))
        raise ConfigError(f"the key in {key.file} has a password", hint=_PASSWORD) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        why = "holds no private key in PEM form"
        if password is not None:
            why += ", or its password is another"
        raise ConfigError(f"{key.file} {why}", hint=_MAKE) from error
    if not isinstance(private, Private) or not is_usable(private.public_key()):
        raise ConfigError(f"the key in {key.file} is {NOT_USABLE}", hint=_MAKE)
    return private


def load_public_keys(files: Iterable[Path]) -> dict[str, Public]:
    """The keys in `files`, by the sha256 that bundles name them by."""
    found = (_load_public_key(file) for file in files)
    return {key_id(public): public for public in found}


def key_id(public: Public) -> str:
    """The sha256 of a public key in PEM form."""
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def is_usable(public: object) -> bool:
    """Whether a public key is one that signatures may be made with."""
    return isinstance(public, Public) and public.curve.name in _HASHES


def sign(private: Private, data: bytes) -> bytes:
    """The signature of `data`."""
    return private.sign(data, ec.ECDSA(_HASHES[private.curve.name]))


def check(public: Public, signature: bytes, data: bytes) -> None:
    """Raise `SignatureError` unless `signature` of `data` was made with the half of `public`."""
    try:
        public.verify(signature, data, ec.ECDSA(_HASHES[public.curve.name]))
    except InvalidSignature as error:
        raise SignatureError("its signature is wrong: it was changed, or forged") from error


def check_by_one_of(keys: Mapping[str, Public], envelope: Envelope) -> Identity:
    """Which of `keys` has signed it. `SignatureError` if none has."""
    hint = envelope.material.hint
    if not keys:
        raise SignatureError("it was signed with a key, and no public key is trusted")
    if hint and hint not in keys:
        raise SignatureError(f"it was signed with the key sha256:{hint}, which is not trusted")
    for id_, public in keys.items():
        if hint in ("", id_):
            try:
                check(public, envelope.signature, envelope.signed_bytes)
            except SignatureError:
                if hint:
                    raise
            else:
                return Identity(kind="key", id=id_)
    raise SignatureError("none of the keys that are trusted has signed it")


def load_signing_chain(key: SigningKey, private: Private) -> tuple[bytes, ...]:
    """The certificate that goes with `private`, and those that lead to its root, in DER form.

    `ConfigError` for one that is another key's, has expired, or may not sign.
    """
    from mm_plugins.sign import _chain

    assert key.certificate is not None
    leaf, *more = load_certificates([key.certificate])
    if leaf.public_key() != private.public_key():
        raise ConfigError(
            f"the certificate in {key.certificate} is not that of the key in {key.file}",
            hint="name the key that the certificate was made for",
        )
    try:
        _chain.refuse_unusable(leaf)
    except SignatureError as error:
        raise ConfigError(f"{key.certificate}: {error}", hint="have a new one made") from error
    chain = [leaf, *more, *load_certificates(key.chain)]
    return tuple(one.public_bytes(Encoding.DER) for one in chain)


def load_certificates(files: Iterable[Path]) -> Sequence[x509.Certificate]:
    """All certificates in `files`, in order. `ConfigError` for a file without any."""
    found: list[x509.Certificate] = []
    for file in files:
        try:
            found += x509.load_pem_x509_certificates(read(file))
        except ValueError as error:
            raise ConfigError(f"{file} holds no certificate in PEM form") from error
    return found


def read(file: Path) -> bytes:
    """The bytes of a file with a key or certificate."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error


def _load_public_key(file: Path) -> Public:
    try:
        public = load_pem_public_key(read(file))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{file} holds no public key in PEM form", hint=_MAKE) from error
    if not isinstance(public, Public) or not is_usable(public):
        raise ConfigError(f"the key in {file} is {NOT_USABLE}", hint=_MAKE)
    return public
