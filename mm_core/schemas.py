"""The nouns. All are frozen values; each stage of the street takes some and returns others.

Request -> Snapshot -> Plan -> StoredFile… -> ModelEntry

They are plain dataclasses, so that a short command does not pay for importing a
validation library; what comes from outside is checked where it comes in
(`mm_core.names` for names, `mm_core.config` for settings).
"""

from __future__ import annotations

import enum
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from mm_core.exceptions import IntegrityError, UsageError
from mm_core.names import check_alias, check_model_id, check_path, check_version
from mm_core.weights import Weights, parse_weights

E = TypeVar("E", bound=enum.Enum)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LISTED = frozenset({"path", "size", "sha256", "key"})

CHECKS = "checks"
"""The field of a manifest that tells what looked at its version's bytes, and what came of it."""

SCHEMA_VERSION = 1
"""The version of every JSON document that the command line prints."""


class ModelType(str, enum.Enum):
    """What a model does: the Hub's pipeline tags, and OTHER for all else."""

    ANY_TO_ANY = "any-to-any"
    AUDIO_CLASSIFICATION = "audio-classification"
    AUDIO_TEXT_TO_TEXT = "audio-text-to-text"
    AUDIO_TO_AUDIO = "audio-to-audio"
    AUTOMATIC_SPEECH_RECOGNITION = "automatic-speech-recognition"
    DEPTH_ESTIMATION = "depth-estimation"
    DOCUMENT_QUESTION_ANSWERING = "document-question-answering"
    FEATURE_EXTRACTION = "feature-extraction"
    FILL_MASK = "fill-mask"
    GRAPH_ML = "graph-ml"
    IMAGE_CLASSIFICATION = "image-classification"
    IMAGE_FEATURE_EXTRACTION = "image-feature-extraction"
    IMAGE_SEGMENTATION = "image-segmentation"
    IMAGE_TEXT_TO_IMAGE = "image-text-to-image"
    IMAGE_TEXT_TO_TEXT = "image-text-to-text"
    IMAGE_TEXT_TO_VIDEO = "image-text-to-video"
    IMAGE_TO_3D = "image-to-3d"
    IMAGE_TO_IMAGE = "image-to-image"
    IMAGE_TO_TEXT = "image-to-text"
    IMAGE_TO_VIDEO = "image-to-video"
    KEYPOINT_DETECTION = "keypoint-detection"
    MASK_GENERATION = "mask-generation"
    MULTIPLE_CHOICE = "multiple-choice"
    OBJECT_DETECTION = "object-detection"
    QUESTION_ANSWERING = "question-answering"
    REINFORCEMENT_LEARNING = "reinforcement-learning"
    ROBOTICS = "robotics"
    SENTENCE_SIMILARITY = "sentence-similarity"
    SUMMARIZATION = "summarization"
    TABLE_QUESTION_ANSWERING = "table-question-answering"
    TABLE_TO_TEXT = "table-to-text"
    TABULAR_CLASSIFICATION = "tabular-classification"
    TABULAR_REGRESSION = "tabular-regression"
    TABULAR_TO_TEXT = "tabular-to-text"
    TEXT2TEXT_GENERATION = "text2text-generation"
    TEXT_CLASSIFICATION = "text-classification"
    TEXT_GENERATION = "text-generation"
    TEXT_RANKING = "text-ranking"
    TEXT_RETRIEVAL = "text-retrieval"
    TEXT_TO_3D = "text-to-3d"
    TEXT_TO_AUDIO = "text-to-audio"
    TEXT_TO_IMAGE = "text-to-image"
    TEXT_TO_SPEECH = "text-to-speech"
    TEXT_TO_VIDEO = "text-to-video"
    TIME_SERIES_FORECASTING = "time-series-forecasting"
    TOKEN_CLASSIFICATION = "token-classification"  # noqa: S105  # no password
    TRANSLATION = "translation"
    UNCONDITIONAL_IMAGE_GENERATION = "unconditional-image-generation"
    VIDEO_CLASSIFICATION = "video-classification"
    VIDEO_TEXT_TO_TEXT = "video-text-to-text"
    VIDEO_TO_VIDEO = "video-to-video"
    VISUAL_DOCUMENT_RETRIEVAL = "visual-document-retrieval"
    VISUAL_QUESTION_ANSWERING = "visual-question-answering"
    VOICE_ACTIVITY_DETECTION = "voice-activity-detection"
    ZERO_SHOT_CLASSIFICATION = "zero-shot-classification"
    ZERO_SHOT_IMAGE_CLASSIFICATION = "zero-shot-image-classification"
    ZERO_SHOT_OBJECT_DETECTION = "zero-shot-object-detection"
    OTHER = "other"

    @classmethod
    def from_tag(cls, tag: str | None) -> ModelType:
        """The type of a pipeline tag; OTHER for none and for tags that are new to us."""
        try:
            return cls(tag)
        except ValueError:
            return cls.OTHER


class ModelStatus(str, enum.Enum):
    """Where a version stands. Only AVAILABLE versions are offered for use."""

    DOWNLOADING = "DOWNLOADING"
    AVAILABLE = "AVAILABLE"
    FAILED = "FAILED"
    DELETED = "DELETED"
    SWEEPING = "SWEEPING"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One version of one model, as the registry knows it.

    `path` is where its files are: a `Path` on a local disk, else the URL of the
    folder as a string. `size_bytes` is the sum of its files. `download_date` is
    in UTC when it carries a zone, and taken as local time when it does not.
    """

    model_id: str
    model_type: ModelType = ModelType.OTHER
    path: Path | str
    status: ModelStatus = ModelStatus.AVAILABLE
    version: str
    size_bytes: int = 0
    download_date: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    source: str | None = None
    aliases: tuple[str, ...] = ()
    manifest: str | None = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "model_id", check_model_id(self.model_id))
        set_(self, "version", check_version(self.version))
        set_(self, "model_type", _member(ModelType, self.model_type))
        set_(self, "status", _member(ModelStatus, self.status))
        set_(self, "aliases", tuple(self.aliases))
        if self.size_bytes < 0:
            raise UsageError(f"size_bytes of {self.model_id!r} is negative")

    def to_json(self) -> dict[str, Any]:
        """The entry as JSON data, in the shape that every command prints."""
        return {
            "model_id": self.model_id,
            "version": self.version,
            "model_type": self.model_type.value,
            "status": self.status.value,
            "path": str(self.path),
            "size_bytes": self.size_bytes,
            "download_date": rfc3339(self.download_date),
            "source": self.source,
            "aliases": list(self.aliases),
            "metadata": dict(self.metadata),
        }


class RequestOptions(TypedDict, total=False):
    """What `ModelManager.plan` and `pull` take beside the source: the fields of `Request`."""

    revision: str | None
    include: Sequence[str]
    exclude: Sequence[str]
    model_id: str | None
    version: str | None
    aliases: Sequence[str]
    model_type: ModelType | None
    weights: Weights | str | None
    expected: Mapping[str, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the caller asked for, before anybody was asked whether it exists.

    `url` is the address in the source's own words (``hf://org/name``). Patterns
    in `include` and `exclude` are globs over whole paths, where ``*`` also
    matches ``/``; exclude wins. With `share`, a disk that holds both may keep the
    bytes once, under two names: the caller says that nobody changes them in place.
    `weights` is the one format to bring of several, see `mm_core.weights`. With
    `expected`, exactly these files are asked for, and each must be what is said of
    it there: see `mm_core.lockfile.stated`.
    """

    url: str
    revision: str | None = None
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    model_id: str | None = None
    version: str | None = None
    aliases: Sequence[str] = ()
    model_type: ModelType | None = None
    share: bool = False
    weights: Weights | str | None = None
    expected: Mapping[str, str] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        for name in ("include", "exclude", "aliases"):  # a word is one, and not its letters
            value = getattr(self, name)
            if isinstance(value, str):
                set_(self, name, (value,))
        if self.model_id is not None:
            set_(self, "model_id", check_model_id(self.model_id))
        if self.version is not None:
            set_(self, "version", check_version(self.version))
        set_(self, "aliases", tuple(check_alias(alias) for alias in self.aliases))
        set_(self, "include", tuple(self.include))
        set_(self, "exclude", tuple(self.exclude))
        if isinstance(self.weights, str):
            set_(self, "weights", parse_weights(self.weights))

    @property
    def wish(self) -> Weights | None:
        """`weights` as they are understood."""
        return self.weights if isinstance(self.weights, Weights) else None

    def selects(self, path: str) -> bool:
        """Whether the patterns let `path` through. Every source asks this for every file."""
        if self.expected is not None:
            return path in self.expected
        if any(fnmatchcase(path, pattern) for pattern in self.exclude):
            return False
        return not self.include or any(fnmatchcase(path, pattern) for pattern in self.include)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file as its source describes it.

    `path` is relative to the model. `size` is in bytes, None where the source
    does not say. `sha256` and `git_sha1` are lower-case hex, where the source
    states them; whatever is stated will be checked. `etag` ties ranged reads to
    one state of the file. `extra` is the source's own, opaque to everybody else
    and never shown: it may hold a signed URL. `notes` are fields that a manifest
    keeps beside the file, and that are new to this release.
    """

    path: str
    size: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None
    etag: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)
    notes: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What exists at the source now, at a fixed revision.

    `source` is the canonical URL, without secrets, from which the same snapshot
    can be asked for again. `revision` is None where the source has no notion of
    one: then the caller must name a version. `model_id` is the source's
    suggestion. `facts` are the source's words about the model (card data, tags,
    the revision that was asked for): JSON data, recorded and shown. `version` is the
    source's own name for this state, where that is another than its revision.
    `extra` are fields for the manifest that are new to this release. `signatures` are
    bundles over the files that come with them, and are none of them.
    """

    source: str
    revision: str | None
    files: tuple[RemoteFile, ...]
    model_id: str
    model_type: ModelType = ModelType.OTHER
    license: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)
    version: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    signatures: tuple[bytes, ...] = field(default=(), repr=False)


class Action(str, enum.Enum):
    """What has to be done for one file of a plan."""

    FETCH = "fetch"
    COPY = "copy"
    PRESENT = "present"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFile:
    """One file of a plan: what it is, where it goes, and what must be done.

    `copy_from` is the key of equal bytes in the same sink. A copy without one is
    made from the source's own file, by the store that holds both.
    """

    file: RemoteFile
    key: str
    action: Action
    copy_from: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What must move. Printing it is the dry run; nothing has happened yet.

    `request` is what the caller asked for; None where a plan was not made for one.
    `left_out` are weights in other formats than the one that was asked for.
    """

    model_id: str
    version: str
    model_type: ModelType
    snapshot: Snapshot
    prefix: str
    files: tuple[PlannedFile, ...]
    aliases: tuple[str, ...] = ()
    request: Request | None = None
    left_out: tuple[RemoteFile, ...] = ()

    def bytes_to(self, action: Action) -> int:
        """The sum of the known sizes of the files with `action`."""
        return sum(f.file.size or 0 for f in self.files if f.action is action)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON data."""
        return {
            "model_id": self.model_id,
            "version": self.version,
            "model_type": self.model_type.value,
            "source": self.snapshot.source,
            "files": [
                {
                    "path": f.file.path,
                    "size": f.file.size,
                    "action": f.action.value,
                    "copy_from": f.copy_from,
                }
                for f in self.files
            ],
            "fetch_bytes": self.bytes_to(Action.FETCH),
            "copy_bytes": self.bytes_to(Action.COPY),
            "present_bytes": self.bytes_to(Action.PRESENT),
            "left_out": [{"path": f.path, "size": f.size} for f in self.left_out],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One file that stands in the backend, verified: the writer's own record.

    `kept` are the bytes of a fetched file that an earlier attempt had stored already.
    `extra` keeps fields that are new to this release, as `Manifest.extra` does.
    """

    path: str
    key: str
    size: int
    sha256: str
    action: Action = Action.FETCH
    kept: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def to_json(self) -> dict[str, Any]:
        """The file as a manifest lists it."""
        known = {"path": self.path, "size": self.size, "sha256": self.sha256, "key": self.key}
        return {**self.extra, **known}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """What a store says of one object. `modified` is by the store's own clock, in UTC."""

    key: str
    size: int
    modified: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfinishedUpload:
    """Parts of a file that no reader sees. `id` is the store's own word for them.

    `size` counts the bytes that are stored, None where that costs more than it
    tells. `modified` is when it began or was last added to, by the store's clock.
    """

    key: str
    id: str
    modified: datetime
    size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that is known about one version, kept beside it under its own sha256.

    `extra` keeps fields of the same format version that are new to this
    release, so that reading and writing again loses nothing.
    """

    model_id: str
    version: str
    model_type: ModelType
    files: tuple[StoredFile, ...]
    source: str | None = None
    revision: str | None = None
    license: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def size_bytes(self) -> int:
        """The sum of the sizes of the files."""
        return sum(file.size for file in self.files)

    @property
    def checks(self) -> Mapping[str, Any]:
        """What the policies that looked at the bytes noted, by their types."""
        found = self.extra.get(CHECKS)
        return found if isinstance(found, Mapping) else {}

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal manifests are equal bytes."""
        return canonical_json(
            {
                **self.extra,
                "model_id": self.model_id,
                "version": self.version,
                "model_type": self.model_type.value,
                "files": [f.to_json() for f in sorted(self.files, key=lambda f: f.path)],
                "source": self.source,
                "revision": self.revision,
                "license": self.license,
                "facts": dict(self.facts),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """The manifest in `data`; `IntegrityError` if it is not one."""
        try:
            raw = json.loads(data)
            known = {
                "model_id": check_model_id(raw.pop("model_id")),
                "version": check_version(raw.pop("version")),
                "model_type": ModelType.from_tag(raw.pop("model_type", None)),
                "files": tuple(_listed_file(f) for f in raw.pop("files")),
                "source": raw.pop("source", None),
                "revision": raw.pop("revision", None),
                "license": raw.pop("license", None),
                "facts": raw.pop("facts", None) or {},
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(f"a manifest cannot be read: {error}") from error
        return cls(**known, extra=raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferEvent:
    """Something that happened during a transfer.

    `kind` is one of ``planned``, ``started``, ``progress``, ``retry``,
    ``stored``, ``failed``, ``waiting``, ``committed``. `done` and `total` are
    bytes of the file `path`, or of the whole model where `path` is None.
    """

    kind: str
    model_id: str
    path: str | None = None
    done: int = 0
    total: int | None = None
    message: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The event as JSON data."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """What a pull, push or copy ended with: the entry, and how its bytes got there.

    `left_out` are weights in other formats than the one that was asked for.
    """

    entry: ModelEntry
    backend: str
    fetched_bytes: int = 0
    copied_bytes: int = 0
    present_bytes: int = 0
    left_out: tuple[RemoteFile, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The result as JSON data."""
        return {
            "left_out": [{"path": f.path, "size": f.size} for f in self.left_out],
            "entry": self.entry.to_json(),
            "backend": self.backend,
            "fetched_bytes": self.fetched_bytes,
            "copied_bytes": self.copied_bytes,
            "present_bytes": self.present_bytes,
        }


def _member(kind: type[E], value: Any) -> E:
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(member.value for member in kind)
        raise UsageError(
            f"there is no {kind.__name__} {value!r}", hint=f"choose one of {known}"
        ) from None


def _listed_file(listed: Mapping[str, Any]) -> StoredFile:
    """A file as a manifest lists it; it names where bytes will go, so it is checked."""
    size, sha256, key = listed["size"], listed["sha256"], listed["key"]
    if not isinstance(size, int) or size < 0:
        raise ValueError(f"the size of {listed['path']!r} is not a number of bytes")
    if not isinstance(sha256, str) or _SHA256.fullmatch(sha256) is None:
        raise ValueError(f"the sha256 of {listed['path']!r} is not one")
    if not isinstance(key, str):
        raise TypeError(f"the key of {listed['path']!r} is no text")
    extra = {name: value for name, value in listed.items() if name not in _LISTED}
    path = check_path(listed["path"])
    return StoredFile(path=path, key=key, size=size, sha256=sha256, extra=extra)


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal values are equal bytes."""
    return json.dumps(
        value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode()


def sha256_hex(data: bytes) -> str:
    """The sha256 of `data` in lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def content_version(files: Iterable[RemoteFile]) -> str:
    """A version named by its content alone: 40 hex digits over paths, sizes and sha256."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.path):
        digest.update(f"{file.path}\0{file.size}\0{file.sha256}\n".encode())
    return digest.hexdigest()[:40]


def rfc3339(moment: datetime) -> str:
    """`moment` in UTC as RFC 3339 with a ``Z``; a naive one is taken as local time."""
    return moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


def parse_rfc3339(text: str) -> datetime:
    """The moment that `rfc3339`, or a store, wrote; parts finer than a microsecond are cut."""
    if "." in text:
        text = re.sub(r"\.(\d+)", lambda match: f".{match[1][:6]:0<6}", text)
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
