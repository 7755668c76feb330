"""Signer: the port to forms of signatures over models, and the nouns that it speaks of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What is signed: these files, by path and sha256, are the model `name`.

    `left_out` are the paths, of files or of whole folders, of which whoever signed
    says nothing. The name is for people: nothing is decided by it.
    """

    name: str
    files: Mapping[str, str] = field(hash=False)
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who has signed: a key or a certificate, by the sha256 that its form names it by.

    `subject` is whom a certificate names.
    """

    kind: str
    id: str
    subject: str | None = None

    def __str__(self) -> str:
        name = f"{self.kind} sha256:{self.id}"
        return f"{name} ({self.subject})" if self.subject else name

    def to_json(self) -> dict[str, Any]:
        """The signer as JSON data."""
        return {"kind": self.kind, "id": self.id, "subject": self.subject}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """What a bundle says, and who it says has signed it."""

    identity: Identity
    statement: Statement


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """Where the private key is that signs, in a file in PEM form.

    With a `certificate`, that is put into the bundle, and the certificates of `chain`,
    which lead from it to a root.
    """

    file: Path
    password: str | None = field(default=None, repr=False)
    certificate: Path | None = None
    chain: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedKeys:
    """Whose signatures count: public keys, and certificates that those roots stand for.

    All are files in PEM form.
    """

    public_keys: tuple[Path, ...] = ()
    certificate_roots: tuple[Path, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.public_keys or self.certificate_roots)

    def __or__(self, other: TrustedKeys) -> TrustedKeys:
        """Those of both."""
        return TrustedKeys(
            public_keys=tuple(dict.fromkeys((*self.public_keys, *other.public_keys))),
            certificate_roots=tuple(
                dict.fromkeys((*self.certificate_roots, *other.certificate_roots))
            ),
        )


class Signer(ABC):
    """One form of signatures over models: how a bundle is made, read and proven.

    It is given digests and never reads a file of a model. It asks nobody over the
    network. Bundles come from anywhere: what is read of one is bounded, and whatever
    is wrong with it is a `SignatureError`.
    """

    type: ClassVar[str]
    """The word for it."""

    @classmethod
    @abstractmethod
    def answers(cls, bundle: bytes) -> bool:
        """Whether `bundle` is of this form, as far as a quick look tells. Never raises."""

    @abstractmethod
    def sign(self, statement: Statement, key: SigningKey) -> bytes:
        """A bundle that says `statement`, signed with `key`.

        Raises `ConfigError` for a key or certificate that cannot be used, and
        `MissingExtraError` where a library is not installed.
        """

    @abstractmethod
    def read(self, bundle: bytes) -> Signed:
        """What `bundle` says of itself. Nothing of it is proven."""

    @abstractmethod
    def verify(self, bundle: bytes, trusted: TrustedKeys) -> Signed:
        """What `bundle` says, once it is proven that one of `trusted` has signed it, as of now.

        Raises `SignatureError` where that is not so, saying why; `ConfigError` for a file
        of `trusted` that holds no key or certificate, `MissingExtraError` as `sign`.
        """

    @abstractmethod
    def verify_own(self, bundle: bytes, key: SigningKey) -> Signed:
        """What `bundle` says, once it is proven that `key` itself has signed it.

        Raises `SignatureError` where it has not, and as `sign`.
        """
