"""Certificates: whether one leads to a trusted root, as of now, and may sign."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from mm_core import ConfigError, Identity, SignatureError, TrustedKeys
from mm_plugins.sign import _crypto

_DEPTH = 8


def verified_leaf(
    certificates: Sequence[bytes], trusted: TrustedKeys
) -> tuple[_crypto.Public, Identity]:
    """The key of the first of `certificates`, if it leads through the others to a trusted root.

    `SignatureError` where it does not, where one on the way has expired, and where the
    first may not sign.
    """
    if not trusted.certificate_roots:
        raise SignatureError("it was signed with a certificate, and no root is trusted")
    leaf, *others = (_load(der) for der in certificates)
    refuse_unusable(leaf)
    roots = _crypto.load_certificates(trusted.certificate_roots)
    try:
        _verifier(roots).verify(leaf, list(others))
    except verification.VerificationError as error:
        raise SignatureError(
            f"its certificate {_name(leaf)} leads to no trusted root: {error}"
        ) from error
    public = leaf.public_key()
    assert isinstance(public, _crypto.Public)
    return public, Identity(kind="certificate", id=_fingerprint(leaf), subject=_name(leaf))


def refuse_unusable(leaf: x509.Certificate) -> None:
    """Raise `SignatureError` for a certificate that may not sign, or not now."""
    now = datetime.now(timezone.utc)
    if now > leaf.not_valid_after_utc:
        raise SignatureError(
            f"its certificate {_name(leaf)} has expired: it was valid until "
            f"{leaf.not_valid_after_utc:%Y-%m-%d}"
        )
    if now < leaf.not_valid_before_utc:
        raise SignatureError(
            f"its certificate {_name(leaf)} is not valid before "
            f"{leaf.not_valid_before_utc:%Y-%m-%d}"
        )
    public = leaf.public_key()
    if not isinstance(public, _crypto.Public) or not _crypto.is_usable(public):
        raise SignatureError(f"the key of its certificate {_name(leaf)} is {_crypto.NOT_USABLE}")
    if not _may_sign(leaf):
        raise SignatureError(f"its certificate {_name(leaf)} is not for signing")


def subject_of(der: bytes) -> str | None:
    """Whom a certificate names; None for what is none."""
    try:
        return _name(_load(der))
    except SignatureError:
        return None


def _verifier(roots: Sequence[x509.Certificate]) -> verification.ClientVerifier:
    """Chains of any private PKI: what the web asks of certificates beyond that is not asked."""
    if not roots:
        raise ConfigError("the files with trusted roots hold no certificate")
    everything, agnostic = (
        verification.ExtensionPolicy.permit_all(),
        verification.Criticality.AGNOSTIC,
    )
    authorities = everything.require_present(x509.BasicConstraints, agnostic, _is_authority)
    authorities = authorities.may_be_present(x509.KeyUsage, agnostic, _may_issue)
    return (
        verification.PolicyBuilder()
        .store(verification.Store(list(roots)))
        .time(datetime.now(timezone.utc))
        .max_chain_depth(_DEPTH)
        .extension_policies(ca_policy=authorities, ee_policy=everything)
        .build_client_verifier()
    )


def _is_authority(
    _: verification.Policy, certificate: x509.Certificate, found: x509.BasicConstraints
) -> None:
    if not found.ca:
        raise ValueError(f"{_name(certificate)} is no authority")


def _may_issue(
    _: verification.Policy, certificate: x509.Certificate, found: x509.KeyUsage | None
) -> None:
    if found is not None and not found.key_cert_sign:
        raise ValueError(f"{_name(certificate)} may not issue certificates")


def _may_sign(leaf: x509.Certificate) -> bool:
    try:
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
        if usage.digital_signature:
            return True
    except x509.ExtensionNotFound:
        pass
    except ValueError:
        return False
    try:
        extended = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return ExtendedKeyUsageOID.CODE_SIGNING in extended


def _load(der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError("one of its certificates cannot be read") from error


def _fingerprint(leaf: x509.Certificate) -> str:
    return leaf.fingerprint(hashes.SHA256()).hex()


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or "without a name"
