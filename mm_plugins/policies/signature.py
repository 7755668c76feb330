"""Policy ``signature``: what enters must be signed by somebody who is trusted."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from mm_core import (
    Bundle,
    Checked,
    CheckedSignature,
    Content,
    ContentFile,
    Finding,
    Plan,
    PluginConfig,
    Policy,
    PolicyContext,
    SignatureState,
    TrustedKeys,
    check_signatures,
    could_be_bundle,
    hookimpl,
)
from mm_plugins.sign.openssf import OpenSsfSigner

_SIGNERS = {OpenSsfSigner.type: OpenSsfSigner}
_BLOCK = 1 << 20

_SIGN_FIRST = (
    "have it signed: `model_signing sign key FOLDER --private_key KEY.pem --signature "
    "FOLDER/model.sig`, then `mm push FOLDER`; or `mm sign` it where it is, and `mm copy` it"
)
_TRUST = "add whoever has signed to `signing.public_keys` or to this policy's `public_keys`"


@hookimpl
def mm_policies() -> list[type[Policy]]:
    """Offer the policy."""
    return [SignaturePolicy]


class SignaturePolicy(Policy):
    """One signature over all files, by a trusted key or a certificate of a trusted root.

    On the plan it is seen whether there is any; before the commit it is proven, against
    the sha256 of what was stored.
    """

    type = "signature"
    reads_content = True

    class Config(PluginConfig):
        """Whose signatures count: those of the section ``signing`` do, too."""

        required: bool = Field(
            default=True, description="Refuse what is not signed; else only what is signed wrongly"
        )
        public_keys: list[Path] = Field(
            default_factory=list, description="Files with public keys whose signatures count"
        )
        certificate_roots: list[Path] = Field(
            default_factory=list, description="Files with roots whose certificates count"
        )

    def check_plan(self, plan: Plan, context: PolicyContext) -> Iterable[Finding]:
        """Whether anything comes along that could be a signature, and anybody is trusted."""
        if not self._trusted(context):
            yield _refused(
                "public_keys", "nobody is trusted to sign: no key and no root is named", _TRUST
            )
        files = (planned.file for planned in plan.files)
        named = any(could_be_bundle(file.path, file.size) for file in files)
        if self.config.required and not named and not plan.snapshot.signatures:
            yield _refused("required", "no signature comes with it", _SIGN_FIRST)

    def check_content(self, plan: Plan, content: Content, context: PolicyContext) -> Checked:
        """Whether one of its signatures is by somebody who is trusted, and over these files."""
        files = {file.path: file.sha256 or _hashed(content, file) for file in content.files}
        bundles = [
            *(Bundle(data=data, place=_sha256(data)) for data in plan.snapshot.signatures),
            *_brought(content),
        ]
        checked = check_signatures(bundles, files, _SIGNERS, self._trusted(context))
        valid = [one for one in checked if one.state is SignatureState.VALID]
        if valid:
            return Checked(findings=tuple(_uncovered(valid[0])), facts=_facts(valid[0], bundles))
        if not checked and not self.config.required:
            return Checked()
        return Checked(findings=tuple(_why_not(checked, files)))

    def _trusted(self, context: PolicyContext) -> TrustedKeys:
        own = TrustedKeys(
            public_keys=tuple(path.expanduser() for path in self.config.public_keys),
            certificate_roots=tuple(path.expanduser() for path in self.config.certificate_roots),
        )
        return own | context.trusted


def _brought(content: Content) -> Iterator[Bundle]:
    """The files that may be bundles."""
    for file in content.files:
        if could_be_bundle(file.path, file.size):
            with content.open(file.path) as opened:
                yield Bundle(data=opened.read(), place=file.path, path=file.path)


def _hashed(content: Content, file: ContentFile) -> str:
    """The sha256 of a file that nobody states one of: it is read for it."""
    digest = hashlib.sha256()
    with content.open(file.path) as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _why_not(checked: Sequence[CheckedSignature], files: Collection[str]) -> Iterator[Finding]:
    if not checked:
        yield _refused("required", "none of its files is a signature over the others", _SIGN_FIRST)
    for one in checked:
        path = one.place if one.place in files else None
        yield _refused("required", f"its signature does not count: {one.reason}", _TRUST, path)


def _uncovered(valid: CheckedSignature) -> Iterator[Finding]:
    for path in valid.uncovered:
        yield Finding(
            rule="required",
            path=path,
            message="whoever signed the model left this file out",
            allow="",
            refused=False,
        )


def _facts(valid: CheckedSignature, bundles: Iterable[Bundle]) -> dict[str, Any]:
    assert valid.signer is not None
    sha256 = next(_sha256(one.data) for one in bundles if one.place == valid.place)
    return {"form": OpenSsfSigner.type, "signer": valid.signer.to_json(), "bundle": sha256}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _refused(rule: str, message: str, allow: str, path: str | None = None) -> Finding:
    return Finding(rule=rule, message=message, allow=allow, path=path)
