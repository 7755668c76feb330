"""Signatures held against what is stored: by digests alone, no byte of the model is read."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mm_core.exceptions import SignatureError
from mm_core.signatures.port import Identity, Signed, Signer, Statement, TrustedKeys
from mm_core.signatures.shelf import Bundle

GIT_FILES = (".git", ".gitattributes", ".github", ".gitignore")
"""What git keeps beside a model. Other programs say nothing of these, and no loader reads them."""

Signers = Mapping[str, type[Signer]]
"""The forms of signatures that are known, by their type."""

_NAMED = 3


class SignatureState(str, enum.Enum):
    """What came of looking at one signature. UNVERIFIED: nobody has said whose counts."""

    VALID = "valid"
    INVALID = "invalid"
    UNVERIFIED = "unverified"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedSignature:
    """One signature over a version. `reason` says why it does not count.

    `place` is its key, or its path in the model. `uncovered` are files of the version
    of which it says nothing, since whoever signed left them out.
    """

    place: str
    state: SignatureState
    signer: Identity | None = None
    reason: str | None = None
    uncovered: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The signature as JSON data."""
        return {
            "state": self.state.value,
            "signer": None if self.signer is None else self.signer.to_json(),
            "place": self.place,
            "reason": self.reason,
            "uncovered": list(self.uncovered),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """How a statement and the files of a version differ. `uncovered` is no difference."""

    missing: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    unsigned: tuple[str, ...] = ()
    uncovered: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.changed or self.unsigned)

    def __str__(self) -> str:
        """In words, of all that differs."""
        parts = (
            ("is signed and missing", self.missing),
            ("is not what was signed", self.changed),
            ("was not signed", self.unsigned),
        )
        return "; ".join(f"{_names(paths)} {what}" for what, paths in parts if paths)


def differences(
    statement: Statement, files: Mapping[str, str], *, bundle: str | None = None
) -> Differences:
    """How `files`, sha256 by path, differ from what was signed.

    `bundle` is the path of the file with the signature itself, where it is among them.
    """
    others = [path for path in files if path not in statement.files and path != bundle]
    said_nothing = {path for path in others if _is_under(path, statement.left_out)}
    return Differences(
        missing=tuple(sorted(statement.files.keys() - files.keys())),
        changed=tuple(
            path
            for path, sha256 in sorted(statement.files.items())
            if files.get(path, sha256) != sha256
        ),
        unsigned=tuple(
            path
            for path in sorted(others)
            if path not in said_nothing and not _is_under(path, GIT_FILES)
        ),
        uncovered=tuple(path for path in sorted(said_nothing) if not _is_under(path, GIT_FILES)),
    )


def check_signatures(
    bundles: Iterable[Bundle], files: Mapping[str, str], signers: Signers, trusted: TrustedKeys
) -> tuple[CheckedSignature, ...]:
    """What is to be said of each of `bundles` over `files`, sha256 by path.

    One is VALID if one of `trusted` has signed it, and it speaks of exactly these
    files. With nobody trusted, nothing is proven. Files of a model that are no
    bundles after all are left out.
    """
    return tuple(_checked(bundles, files, signers, trusted))


def _checked(
    bundles: Iterable[Bundle], files: Mapping[str, str], signers: Signers, trusted: TrustedKeys
) -> Iterator[CheckedSignature]:
    for bundle in bundles:
        signer = signer_for(bundle.data, signers)
        if signer is not None:
            yield _look(bundle, files, signer, trusted)
        elif bundle.path is None:
            known = ", ".join(sorted(signers)) or "none"
            yield _bad(bundle, None, f"no plugin knows its form (there are: {known})")


def _look(
    bundle: Bundle, files: Mapping[str, str], signer: Signer, trusted: TrustedKeys
) -> CheckedSignature:
    claimed: Signed | None = None
    try:
        claimed = signer.read(bundle.data)
        found = signer.verify(bundle.data, trusted) if trusted else claimed
    except SignatureError as error:
        return _bad(bundle, claimed, str(error))
    differ = differences(found.statement, files, bundle=bundle.path)
    if differ:
        return _bad(bundle, found, str(differ))
    return CheckedSignature(
        place=bundle.place,
        state=SignatureState.VALID if trusted else SignatureState.UNVERIFIED,
        signer=found.identity,
        uncovered=differ.uncovered,
    )


def signer_for(data: bytes, signers: Signers) -> Signer | None:
    """The signer that knows the form of a bundle; None if none does."""
    return next((kind() for kind in signers.values() if kind.answers(data)), None)


def _bad(bundle: Bundle, claimed: Signed | None, reason: str) -> CheckedSignature:
    return CheckedSignature(
        place=bundle.place,
        state=SignatureState.INVALID,
        signer=None if claimed is None else claimed.identity,
        reason=reason,
    )


def _is_under(path: str, tops: Iterable[str]) -> bool:
    return any(path == top or path.startswith(f"{top.rstrip('/')}/") for top in tops)


def _names(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return f"{', '.join(paths[:_NAMED])}{more}"
