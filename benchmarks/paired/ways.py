"""The ways to bring a repository to a place: each is the commands of one of them.

Signing is equal: no way signs or hashes the payload for S3, but for the one
that says so. Xet is off but where it is what is measured.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from paired.inputs import Repo
from paired.native import Native
from paired.peers import Peers
from paired.servers import BUCKET, KEY, SECRET, Certificate

NO_REPO = Repo("none", Path(), ())

Commands = Sequence[Sequence[str]]

_AWS_UNSIGNED = "[default]\nregion = us-east-1\ns3 =\n  payload_signing_enabled = false\n"
_AWS_SIGNED = "[default]\nregion = us-east-1\n"
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class Tools:
    """The programs of all ways. `mm` is the command that calls ours."""

    native: Native
    peers: Peers
    mm: Sequence[str] = (sys.executable, "-m", "mm_core")


@dataclass(frozen=True)
class Trip:
    """One run of one way: from where to where, and the fresh folder that it may use.

    Without a `store` the place is the folder `to`. With a `xet_hash` the
    repository has one file, and its folder is the content store.
    """

    tools: Tools
    scratch: Path
    repo: Repo = NO_REPO
    hub: str = ""
    store: str | None = None
    prefix: str = ""
    certificate: Certificate | None = None
    jobs: int | None = None
    by_ranges: bool = False
    xet_hash: str | None = None

    @property
    def to(self) -> Path:
        """The folder to fill, where the place is local disk."""
        return self.scratch / "result"

    @property
    def staged(self) -> Path:
        """Where a way with two steps keeps what it downloaded."""
        return self.scratch / "staged"

    @property
    def s3_url(self) -> str:
        """The prefix to fill, where the place is S3."""
        return f"s3://{BUCKET}/{self.prefix}"

    def environment(self) -> dict[str, str]:
        """All that a child may know: no setting of whoever runs this comes through."""
        home = self.scratch / "home"
        temporary = self.scratch / "tmp"
        for folder in (home, temporary, self.to):
            folder.mkdir(parents=True, exist_ok=True)
        aws_config = home / "aws.ini"
        aws_config.write_text(_AWS_UNSIGNED)
        (home / "aws-signed.ini").write_text(_AWS_SIGNED)
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment |= {
            "HOME": str(home),
            "TMPDIR": str(temporary),
            "HF_HOME": str(home / "hf"),
            "HF_ENDPOINT": self.hub,
            "HF_HUB_DISABLE_XET": "0" if self.xet_hash else "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": str(aws_config),
            "AWS_EC2_METADATA_DISABLED": "true",
            "RCLONE_CONFIG": str(home / "rclone.conf"),
            "RCLONE_CONFIG_STORE_TYPE": "s3",
            "RCLONE_CONFIG_STORE_PROVIDER": "Other",
            "RCLONE_CONFIG_STORE_ACCESS_KEY_ID": KEY,
            "RCLONE_CONFIG_STORE_SECRET_ACCESS_KEY": SECRET,
            "RCLONE_CONFIG_STORE_ENDPOINT": self.store or "",
            "RCLONE_S3_NO_CHECK_BUCKET": "true",
            "RCLONE_S3_USE_MULTIPART_ETAG": "false",
        }
        if self.store:
            environment["AWS_ENDPOINT_URL"] = self.store
        if self.certificate:
            names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "CURL_CA_BUNDLE")
            environment |= dict.fromkeys(names, str(self.certificate.cert))
        return environment


@dataclass(frozen=True)
class Way:
    """How it is called, and what it runs."""

    name: str
    commands: Callable[[Trip], Commands]


# -- the limit -----------------------------------------------------------------------------


def _limit(trip: Trip, *options: str) -> Commands:
    files = trip.scratch / "files.txt"
    files.write_text(
        "".join(f"{trip.repo.url_base}/{f.path}\t{f.path}\t{f.size}\n" for f in trip.repo.files)
    )
    command = [str(trip.tools.native.limit), "--origin", _host(trip.hub), "--files", str(files)]
    if trip.store:
        command += ["--sink", _host(trip.store), "--prefix", f"/{BUCKET}/{trip.prefix}"]
    else:
        command += ["--to", str(trip.to)]
    if trip.by_ranges:
        command += ["--ranges"]
    if trip.certificate:
        command += ["--ca", str(trip.certificate.cert)]
    if trip.jobs:  # two for each connection's worth: one receives while the other's request travels
        command += ["--threads", str(2 * trip.jobs)]
    return [[*command, *options]]


def _host(url: str) -> str:
    return url.partition("://")[2]


# -- ours ----------------------------------------------------------------------------------


def _mm(trip: Trip) -> Commands:
    command = [*trip.tools.mm, "pull", f"hf://{trip.repo.id}"]
    command += ["--to", trip.s3_url if trip.store else str(trip.to)]
    return [[*command, *(["--jobs", str(trip.jobs)] if trip.jobs else [])]]


_EMBEDDED = str(Path(__file__).with_name("embedded.py"))


def _mm_embedded(trip: Trip, *options: str) -> Commands:
    to = trip.s3_url if trip.store else str(trip.to)
    jobs = [f"MM_DEFAULTS__JOBS={trip.jobs}"] if trip.jobs else []
    python = [sys.executable, _EMBEDDED]
    return [["env", *jobs, *python, f"hf://{trip.repo.id}", to, *options]]


# -- peers ---------------------------------------------------------------------------------


_NO_CHECKSUMS = ("env", "AWS_REQUEST_CHECKSUM_CALCULATION=when_required")
"""For the peers. Ours does what it does by itself: a CRC32 with each part."""


def _hf(trip: Trip, folder: Path) -> list[str]:
    return [trip.tools.peers.command("hf"), "download", trip.repo.id, "--local-dir", str(folder)]


def _hf_local(trip: Trip) -> Commands:
    return [_hf(trip, trip.to)]


def _hf_then_sha256(trip: Trip) -> Commands:
    hashing = ["openssl", "dgst", "-sha256"]  # by SHA-NI; coreutils' own is four times slower
    return [_hf(trip, trip.to), [*hashing, *(str(trip.to / f.path) for f in trip.repo.files)]]


def _aws(trip: Trip, *arguments: str) -> list[str]:
    command = [*_NO_CHECKSUMS, trip.tools.peers.command("aws"), "s3", "cp"]
    return [*command, "--no-progress", "--only-show-errors", *arguments]


def _hf_then_aws(trip: Trip) -> Commands:
    upload = ["--recursive", str(trip.staged), trip.s3_url, "--exclude", ".cache/*"]
    return [_hf(trip, trip.staged), _aws(trip, *upload)]


def _hf_then_aws_each(trip: Trip) -> Commands:
    uploads = [
        _aws(trip, str(trip.staged / f.path), f"{trip.s3_url}/{f.path}") for f in trip.repo.files
    ]
    return [_hf(trip, trip.staged), *uploads]


def _hf_then_aws_signed(trip: Trip) -> Commands:
    download, upload = _hf_then_aws(trip)
    config = trip.scratch / "home" / "aws-signed.ini"
    return [download, ["env", f"AWS_CONFIG_FILE={config}", *upload]]


def _rclone(trip: Trip, *options: str) -> Commands:
    urls = trip.scratch / "urls.csv"
    base = f"{trip.hub}{trip.repo.url_base}"
    urls.write_text("".join(f"{base}/{f.path},{f.path}\n" for f in trip.repo.files))
    to = f"store:{BUCKET}/{trip.prefix}" if trip.store else str(trip.to)
    command = [*_NO_CHECKSUMS, trip.tools.peers.command("rclone"), "copyurl"]
    command += ["--urls", str(urls), to]
    command += ["--transfers", str(trip.jobs or 8), *options]
    return [[*command, *(["--ca-cert", str(trip.certificate.cert)] if trip.certificate else [])]]


def _rclone_unsigned(trip: Trip) -> Commands:
    return _rclone(trip, "--s3-use-unsigned-payload=true", "--s3-disable-checksum")


# -- Xet ------------------------------------------------------------------------------------

_XET = str(Path(__file__).with_name("xet.py"))


def _xet_read(trip: Trip) -> Commands:
    (file,) = trip.repo.files
    described = {"hash": trip.xet_hash, "size": file.size, "sha256": file.sha256}
    return [[sys.executable, _XET, "read", str(trip.repo.folder), json.dumps(described)]]


def _xet_pull(trip: Trip) -> Commands:
    return [[sys.executable, _XET, "pull", trip.hub]]


LIMIT = Way("limit (C)", _limit)
LIMIT_FSYNC = Way("limit (C), fsync", lambda trip: _limit(trip, "--fsync"))
MM = Way("mm pull", _mm)
MM_EMBEDDED = Way("pull() in a running process", _mm_embedded)
MM_UNSYNCED = Way("the same, without fsync", lambda trip: _mm_embedded(trip, "unsynced"))
HF = Way("hf download (no hash)", _hf_local)
HF_SHA256 = Way("hf download, openssl sha256", _hf_then_sha256)
HF_AWS = Way("hf download, aws s3 cp --recursive", _hf_then_aws)
HF_AWS_EACH = Way("hf download, aws s3 cp each file", _hf_then_aws_each)
HF_AWS_SIGNED = Way("hf download, aws s3 cp (signed)", _hf_then_aws_signed)
RCLONE = Way("rclone copyurl (no hash)", _rclone_unsigned)
RCLONE_DEFAULT = Way("rclone copyurl (its defaults)", _rclone)
XET_READ = Way("hf_xet's stream, sha256", _xet_read)
XET_PULL = Way("pull into a sink that takes all", _xet_pull)

TO_S3 = (LIMIT, MM, MM_EMBEDDED, HF_AWS, HF_AWS_SIGNED, RCLONE, RCLONE_DEFAULT)
TO_LOCAL = (LIMIT, LIMIT_FSYNC, MM, MM_EMBEDDED, MM_UNSYNCED, HF, HF_SHA256, RCLONE)
