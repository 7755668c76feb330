"""Whether the bytes arrived: every file of the repository, by its sha256, wherever it was put."""

from __future__ import annotations

import hashlib
import ssl
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from paired.inputs import Repo
from paired.servers import BUCKET, Certificate

_NS = "{http://s3.amazonaws.com/doc/2006-03-01/}"


class WrongBytesError(Exception):
    """A file is missing, or is another."""


def check_folder(repo: Repo, folder: Path) -> None:
    """Every file of `repo` stands somewhere below `folder`."""
    found = {path.name: path for path in folder.rglob("*.safetensors") if path.is_file()}
    for file in repo.files:
        if file.path not in found:
            raise WrongBytesError(f"{file.path} is not there")
        with found[file.path].open("rb") as stream:
            _compare(file.path, file.sha256, stream)


def check_store(repo: Repo, store: str, prefix: str, certificate: Certificate | None) -> None:
    """Every file of `repo` stands somewhere below `prefix`; asked without a signature."""
    context = ssl.create_default_context(cafile=str(certificate.cert)) if certificate else None
    found = {key.rpartition("/")[2]: key for key in _keys(store, prefix, context)}
    for file in repo.files:
        if file.path not in found:
            raise WrongBytesError(f"{file.path} is not there")
        url = f"{store}/{BUCKET}/{urllib.parse.quote(found[file.path])}"
        with urllib.request.urlopen(url, context=context) as stream:
            _compare(file.path, file.sha256, stream)


def _keys(store: str, prefix: str, context: ssl.SSLContext | None) -> Iterator[str]:
    query = {"list-type": "2", "prefix": prefix}
    while True:
        url = f"{store}/{BUCKET}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, context=context) as answer:
            page = ET.fromstring(answer.read())
        yield from (key.text or "" for key in page.iter(f"{_NS}Key"))
        token = page.findtext(f"{_NS}NextContinuationToken")
        if not token:
            return
        query["continuation-token"] = token


def _compare(name: str, expected: str, stream: BinaryIO) -> None:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    if digest.hexdigest() != expected:
        raise WrongBytesError(f"{name} has other bytes")
