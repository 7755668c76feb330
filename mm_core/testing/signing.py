"""People with keys and certificates in files, for tests of signatures. Needs the extra ``sign``."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)


class Person:
    """Somebody with a pair of keys in files: `key` and `public`."""

    def __init__(
        self, folder: Path, name: str, *, curve: ec.EllipticCurve | None = None, password: str = ""
    ) -> None:
        self.folder, self.name = folder, name
        self.private = ec.generate_private_key(curve or ec.SECP256R1())
        self.key = folder / f"{name}.pem"
        locked: KeySerializationEncryption = NoEncryption()
        if password:
            locked = BestAvailableEncryption(password.encode())
        self.key.write_bytes(self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
        self.public = folder / f"{name}.pub"
        self.public.write_bytes(
            self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )


@dataclass(frozen=True, kw_only=True)
class Validity:
    """From when to when a certificate is valid, in days from now."""

    start: int = -2
    end: int = 30


class Certified(Person):
    """Somebody whose key has a certificate, in the file `certificate`.

    By `issuer`, or by themselves. An `authority` may issue others, at most `depth` deep
    where that is given; nobody else may. `signs` is whether the key is for signatures.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        issuer: Certified | None = None,
        authority: bool = False,
        depth: int | None = None,
        signs: bool = True,
        validity: Validity | None = None,
    ) -> None:
        super().__init__(folder, name)
        when, validity, by = datetime.now(timezone.utc), validity or Validity(), issuer or self
        self.subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(
            digital_signature=signs and not authority,
            content_commitment=False,
            key_encipherment=not signs and not authority,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=authority,
            crl_sign=authority,
            encipher_only=False,
            decipher_only=False,
        )
        ours = self.private.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.subject)
            .issuer_name(by.subject)
            .public_key(ours)
            .serial_number(x509.random_serial_number())
            .not_valid_before(when + validity.start * DAY)
            .not_valid_after(when + validity.end * DAY)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=depth), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(ours), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(by.private.public_key()),
                critical=False,
            )
        )
        self.certificate = folder / f"{name}.crt"
        made = builder.sign(by.private, hashes.SHA256())
        self.certificate.write_bytes(made.public_bytes(Encoding.PEM))
