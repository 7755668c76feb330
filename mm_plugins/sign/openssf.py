"""OpenSSF model signatures, as the program ``model_signing`` makes and verifies them."""

from __future__ import annotations

from mm_core import (
    Identity,
    SignatureError,
    Signed,
    Signer,
    SigningKey,
    Statement,
    TrustedKeys,
    hookimpl,
)
from mm_plugins.sign._bundle import Envelope, Material, looks_like_bundle, parse, write
from mm_plugins.sign._statement import payload_of, statement_in


@hookimpl
def mm_signers() -> list[type[Signer]]:
    """Offer signatures as the OpenSSF specifies them."""
    return [OpenSsfSigner]


class OpenSsfSigner(Signer):
    """A Sigstore bundle over an in-toto statement, by a key on an elliptic curve or a certificate.

    Needs nothing but `cryptography`, from the extra ``sign``. Bundles of the keyless way,
    which hang on a transparency log, are told apart and not verified.
    """

    type = "openssf"

    @classmethod
    def answers(cls, bundle: bytes) -> bool:
        """Every Sigstore bundle."""
        return looks_like_bundle(bundle)

    def sign(self, statement: Statement, key: SigningKey) -> bytes:
        """The bundle, as JSON. All files are signed; those of git where only we look for them."""
        from mm_plugins.sign import _crypto

        private = _crypto.load_private_key(key)
        material = Material(hint=_crypto.key_id(private.public_key()))
        if key.certificate is not None:
            material = Material(certificates=_crypto.load_signing_chain(key, private))
        payload = payload_of(statement)
        envelope = Envelope(payload=payload, material=material)
        return write(envelope, _crypto.sign(private, envelope.signed_bytes))

    def read(self, bundle: bytes) -> Signed:
        """What stands in the bundle."""
        envelope = parse(bundle)
        return Signed(
            identity=_claimed(envelope.material), statement=statement_in(envelope.payload)
        )

    def verify(self, bundle: bytes, trusted: TrustedKeys) -> Signed:
        """By the trusted key that it names, or by its certificate, if that leads to a root."""
        from mm_plugins.sign import _crypto

        envelope = parse(bundle)
        if envelope.material.certificates:
            from mm_plugins.sign import _chain

            public, identity = _chain.verified_leaf(envelope.material.certificates, trusted)
            _crypto.check(public, envelope.signature, envelope.signed_bytes)
        else:
            keys = _crypto.load_public_keys(trusted.public_keys)
            identity = _crypto.check_by_one_of(keys, envelope)
        return Signed(identity=identity, statement=statement_in(envelope.payload))

    def verify_own(self, bundle: bytes, key: SigningKey) -> Signed:
        """By the public half of `key`."""
        from mm_plugins.sign import _crypto

        envelope, public = parse(bundle), _crypto.load_private_key(key).public_key()
        _crypto.check(public, envelope.signature, envelope.signed_bytes)
        claimed = _claimed(envelope.material)
        if (claimed.kind == "certificate") != (key.certificate is not None):
            raise SignatureError("it was signed in the other way, by key or by certificate")
        return Signed(identity=claimed, statement=statement_in(envelope.payload))


def _claimed(material: Material) -> Identity:
    if material.certificates:
        return Identity(kind="certificate", id=material.fingerprint, subject=_subject(material))
    return Identity(kind="key", id=material.hint)


def _subject(material: Material) -> str | None:
    """Whom the certificate names; None where that cannot be told."""
    try:
        from mm_plugins.sign import _chain
    except ImportError:
        return None
    return _chain.subject_of(material.certificates[0])
