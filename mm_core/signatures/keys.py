"""Which key signs, and whose signatures count: what a call says, else what ``mm.yaml`` does."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mm_core.exceptions import ConfigError
from mm_core.redaction import remember_secret
from mm_core.signatures.port import SigningKey, TrustedKeys

KEY_HINT = (
    "name a private key with --key, or in mm.yaml: `signing: {key_file: ./release.pem}`; "
    "`openssl ecparam -name prime256v1 -genkey -noout -out release.pem` makes one"
)
TRUST_HINT = (
    "name them with --public-key or --certificate-chain, or in mm.yaml: "
    "`signing: {public_keys: [./release.pub]}`"
)


def signing_key(
    values: Mapping[str, Any],
    *,
    key: str | Path | None = None,
    password: str | None = None,
    certificate: str | Path | None = None,
    chain: Sequence[str | Path] = (),
) -> SigningKey:
    """The key to sign with. `values` is the section ``signing``, used where `key` is None.

    `ConfigError` where neither names one.
    """
    if key is None:
        key, password = values.get("key_file"), password or values.get("password")
        certificate = certificate or values.get("certificate")
        chain = chain or values.get("chain", ())
    if key is None:
        raise ConfigError("it is not said which key signs", hint=KEY_HINT)
    if password is not None:
        remember_secret(password)
    return SigningKey(
        file=Path(key).expanduser(),
        password=password,
        certificate=None if certificate is None else Path(certificate).expanduser(),
        chain=_paths(chain),
    )


def trusted_keys(
    values: Mapping[str, Any],
    *,
    public_keys: Sequence[str | Path] = (),
    certificate_roots: Sequence[str | Path] = (),
) -> TrustedKeys:
    """Whose signatures count: those that are named, else those of the section ``signing``."""
    named = TrustedKeys(
        public_keys=_paths(public_keys), certificate_roots=_paths(certificate_roots)
    )
    return named or TrustedKeys(
        public_keys=_paths(values.get("public_keys", ())),
        certificate_roots=_paths(values.get("certificate_roots", ())),
    )


def refuse_nobody(trusted: TrustedKeys) -> None:
    """Raise `ConfigError` where nobody is trusted: then no signature can be verified."""
    if not trusted:
        raise ConfigError("it is not said whose signatures count", hint=TRUST_HINT)


def password_from(variable: str | None, environ: Mapping[str, str] = os.environ) -> str | None:
    """The password in an environment variable. `ConfigError` where that is not set."""
    if variable is None:
        return None
    found = environ.get(variable)
    if not found:
        raise ConfigError(
            f"the variable {variable}, which should hold the key's password, is not set",
            hint=f"set {variable}, such as from your secret store; never write it into a command",
        )
    remember_secret(found)
    return found


def _paths(texts: Sequence[str | Path]) -> tuple[Path, ...]:
    return tuple(Path(text).expanduser() for text in texts)
