"""Sigstore bundles as JSON: an envelope (DSSE) with a payload, a signature, and whose it is.

https://github.com/sigstore/protobuf-specs and https://github.com/secure-systems-lab/dsse
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mm_core import SignatureError

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"

_ANY_BUNDLE = "application/vnd.dev.sigstore.bundle"
_MOST_CERTIFICATES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """Whose signature it is: the sha256 of a public key in PEM form, or a chain in DER form."""

    hint: str = ""
    certificates: tuple[bytes, ...] = ()

    @property
    def fingerprint(self) -> str:
        """The sha256 of the certificate that has signed."""
        return hashlib.sha256(self.certificates[0]).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The ``verificationMaterial`` of a bundle."""
        chain = [{"rawBytes": _text(certificate)} for certificate in self.certificates]
        whose: dict[str, Any] = {"publicKey": {"hint": self.hint}}
        if chain:
            whose = {"x509CertificateChain": {"certificates": chain}}
        return {**whose, "tlogEntries": []}


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A payload, and the signature over it."""

    payload: bytes
    material: Material
    signature: bytes = b""

    @property
    def signed_bytes(self) -> bytes:
        """What the signature is over: payload and type, each after its length."""
        kind = PAYLOAD_TYPE.encode()
        return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(self.payload), self.payload)


def looks_like_bundle(data: bytes) -> bool:
    """Whether it is JSON that calls itself a Sigstore bundle."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and str(found.get("mediaType")).startswith(_ANY_BUNDLE)


def write(envelope: Envelope, signature: bytes) -> bytes:
    """The bundle of `envelope`, signed."""
    document = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": envelope.material.to_json(),
        "dsseEnvelope": {
            "payload": _text(envelope.payload),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": _text(signature), "keyid": ""}],
        },
    }
    return json.dumps(document, separators=(",", ":")).encode()


def parse(data: bytes) -> Envelope:
    """The envelope in a bundle. `SignatureError` for what is none, or of an unknown kind."""
    try:
        document = json.loads(data)
        if document["mediaType"] != MEDIA_TYPE:
            raise SignatureError(
                f"it is a bundle of the type {str(document['mediaType'])[:80]!r}, not {MEDIA_TYPE}",
                hint="sign the model again",
            )
        envelope = document["dsseEnvelope"]
        (signature,) = envelope["signatures"]
        if envelope["payloadType"] != PAYLOAD_TYPE:
            raise SignatureError("what it signs is no in-toto statement")
        return Envelope(
            payload=_bytes(envelope["payload"]),
            signature=_bytes(signature["sig"]),
            material=_material(document["verificationMaterial"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, SignatureError):
            raise
        raise SignatureError(f"it cannot be read: {type(error).__name__}") from error


def _material(raw: Mapping[str, Any]) -> Material:
    if "certificate" in raw:
        raise SignatureError(
            "it was signed by Sigstore without a key; only keys and certificates are verified here",
            hint="verify it with `model_signing verify sigstore`, then sign it with a key of yours",
        )
    if "x509CertificateChain" in raw:
        chain = raw["x509CertificateChain"]["certificates"]
        if not 1 <= len(chain) <= _MOST_CERTIFICATES:
            raise SignatureError(f"it has {len(chain)} certificates")
        return Material(certificates=tuple(_bytes(one["rawBytes"]) for one in chain))
    hint = raw["publicKey"].get("hint") or ""
    if not isinstance(hint, str):
        raise SignatureError("its key is not named by a text")
    return Material(hint=hint[:128])


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
