"""What an OpenSSF model signature says: an in-toto statement that lists files and digests.

https://github.com/ossf/model-signing-spec
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from mm_core import SignatureError, Statement

_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"

_LEFT_OUT = ("model.sig", ".git", ".gitattributes", ".github", ".gitignore")
"""What `model_signing` does not look at in a folder, the signature itself first."""

_OURS = "https://model-manager/also"
"""A field of ours in the predicate: the files of the version that others do not look at."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_AGAIN = "sign the model again, by files and with sha256"

Resources = list[dict[str, str]]


def payload_of(statement: Statement) -> bytes:
    """The statement as JSON: what others look at as they expect it, the rest in a field of ours."""
    files = sorted(statement.files.items(), key=lambda item: PurePosixPath(item[0]))
    resources = _resources(files, looked_at=True)
    also = _resources(files, looked_at=False)
    document = {
        "_type": _TYPE,
        "subject": [{"name": statement.name, "digest": {"sha256": _root_digest(resources)}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": list(_LEFT_OUT),
            },
            "resources": resources,
            **({_OURS: also} if also else {}),
        },
    }
    return json.dumps(document, ensure_ascii=False, sort_keys=True).encode()


def statement_in(payload: bytes) -> Statement:
    """What `payload` says. `SignatureError` for what is no such statement, or not consistent."""
    try:
        document = json.loads(payload)
        if (document["_type"], document["predicateType"]) != (_TYPE, _PREDICATE):
            raise SignatureError(
                f"it is a statement of the type {str(document['predicateType'])[:80]!r}, "
                f"not {_PREDICATE}",
                hint="sign the model again",
            )
        (subject,) = document["subject"]
        predicate = document["predicate"]
        how, resources = predicate["serialization"], predicate["resources"]
        _check_serialization(how)
        files = dict(_files(resources))
        if _root_digest(resources) != subject["digest"]["sha256"]:
            raise SignatureError("its list of files is not the one that it names")
        also = dict(_files(predicate.get(_OURS, ())))
        if len(files) != len(resources) or files.keys() & also.keys():
            raise SignatureError("it lists a file twice")
        return Statement(
            name=str(subject["name"]),
            files={**files, **also},
            left_out=tuple(str(path) for path in how.get("ignore_paths") or ()),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, SignatureError):
            raise
        raise SignatureError(f"what it signs cannot be read: {type(error).__name__}") from error


def _check_serialization(how: Mapping[str, Any]) -> None:
    if (how["method"], how["hash_type"]) != ("files", "sha256"):
        raise SignatureError(
            f"it signs {str(how['method'])[:40]} by {str(how['hash_type'])[:40]}, and the registry "
            "knows files by sha256",
            hint=_AGAIN,
        )


def _files(resources: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for resource in resources:
        name, digest = resource["name"], resource["digest"]
        if resource["algorithm"] != "sha256" or not _SHA256.fullmatch(digest):
            raise SignatureError("it has a digest that is no sha256", hint=_AGAIN)
        if not isinstance(name, str):
            raise SignatureError("it has a file whose name is no text")
        yield name, digest


def _resources(files: Iterable[tuple[str, str]], *, looked_at: bool) -> Resources:
    return [
        {"name": path, "algorithm": "sha256", "digest": sha256}
        for path, sha256 in files
        if (path.split("/")[0] not in _LEFT_OUT) is looked_at
    ]


def _root_digest(resources: Iterable[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256()
    for resource in resources:
        digest.update(bytes.fromhex(resource["digest"]))
    return digest.hexdigest()
