"""The documents of the REST API, as OpenAPI tells them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from mm_core import ModelEntry, Shown, rfc3339
from mm_plugins.hub.catalog import Model, commit_of
from mm_plugins.hub.pulls import Pull

Text = Annotated[str, Field(max_length=1000)]
Word = Annotated[str, Field(max_length=500)]
Sort = Literal["id", "-id", "updated", "-updated", "size", "-size"]
Glob = Annotated[str, Field(max_length=500)]


class Problem(BaseModel):
    """Why a request failed."""

    error: str
    hint: str | None = None


class VersionShape(BaseModel):
    """One version of a model. `url` is where its files are; null for a disk of the server."""

    model_id: str
    version: str
    commit: str = Field(description="What clients of the Hub know it by")
    type: str
    status: str
    size_bytes: int
    added: str = Field(description="RFC 3339")
    source: str | None
    revision: str | None
    license: str | None
    aliases: list[str]
    url: str | None

    @classmethod
    def of(cls, entry: ModelEntry) -> VersionShape:
        """An entry, as it is told."""
        stated = entry.metadata.get
        return cls(
            model_id=entry.model_id,
            version=entry.version,
            commit=commit_of(entry),
            type=entry.model_type.value,
            status=entry.status.value,
            size_bytes=entry.size_bytes,
            added=rfc3339(entry.download_date),
            source=entry.source,
            revision=_text(stated("revision")),
            license=_text(stated("license")),
            aliases=list(entry.aliases),
            url=None if isinstance(entry.path, Path) or "://" not in entry.path else entry.path,
        )


class ModelsAsked(BaseModel):
    """Which models are wanted."""

    search: Word = Field("", description="Words that all stand somewhere in it")
    id: Word = Field("", description="A glob, such as `org/*`")
    type: Word = Field("", description="Such as `text-generation`")
    status: Word = Field("", description="Such as `AVAILABLE`; without it, all but removed ones")
    license: Word = Field("", description="Such as `apache-2.0`")
    sort: Sort = Field("id", description="With `-`, the other way round")
    limit: int = Field(100, ge=1, le=1000)
    cursor: str = Field("", max_length=2000, description="`next` of the former page")


class ModelShape(BaseModel):
    """A model in a list. `main` is the version that is meant where nobody says which."""

    id: str
    main: VersionShape
    versions: int
    aliases: dict[str, str]

    @classmethod
    def of(cls, model: Model) -> ModelShape:
        """A model, as it is told."""
        return cls(
            id=model.id,
            main=VersionShape.of(model.main),
            versions=len(model.versions),
            aliases=aliases_of(model),
        )


class ModelsShape(BaseModel):
    """A page of models. `next` is the cursor of the next one."""

    models: list[ModelShape]
    total: int
    next: str | None


class VersionsShape(BaseModel):
    """A model with all its versions, the newest first."""

    id: str
    aliases: dict[str, str]
    versions: list[VersionShape]

    @classmethod
    def of(cls, model: Model) -> VersionsShape:
        """A model, as it is told."""
        versions = [VersionShape.of(entry) for entry in reversed(model.versions)]
        return cls(id=model.id, aliases=aliases_of(model), versions=versions)


class FileShape(BaseModel):
    """A file. `header` are the facts that its own header states; `url` is where this hub has it."""

    path: str
    size: int
    sha256: str
    url: str
    header: dict[str, Any] | None = None


class SignerShape(BaseModel):
    """Whoever signed."""

    model_config = ConfigDict(extra="allow")


class SignatureShape(BaseModel):
    """A signature over a version: valid, invalid, or unverified where no key is trusted."""

    state: str
    signer: SignerShape | None
    place: str
    reason: str | None
    uncovered: list[str]


class CommitShape(BaseModel):
    """A commit of the registry, as far as it is about the model."""

    seq: int
    time: str
    writer: str | None = Field(description="Told to those with a token")
    operations: list[dict[str, Any]]


class HistoryShape(BaseModel):
    """What was done, the newest first. `whole` is false where older commits were not looked at."""

    commits: list[CommitShape]
    whole: bool


class DescribedShape(VersionShape):
    """All that is known of a version. `checks` is what scanners and policies noted."""

    files: list[FileShape]
    facts: dict[str, Any]
    checks: dict[str, Any]
    signatures: list[SignatureShape] | None
    history: list[CommitShape] | None = Field(description="null where it cannot be read")

    @classmethod
    def told(
        cls, entry: ModelEntry, shown: Shown | None, history: list[dict[str, Any]] | None
    ) -> DescribedShape:
        """An entry with its manifest, as they are told."""
        known = VersionShape.of(entry).model_dump()
        if shown is None:
            nothing: dict[str, Any] = {"files": [], "facts": {}, "checks": {}, "signatures": None}
            return cls.model_validate({**known, **nothing, "history": history})
        manifest = shown.manifest
        known |= {
            "revision": manifest.revision or known["revision"],
            "license": manifest.license or known["license"],
        }
        signatures = shown.signatures
        rest = {
            "files": _files(entry, shown),
            "facts": dict(manifest.facts),
            "checks": dict(manifest.checks),
            "signatures": None if signatures is None else [one.to_json() for one in signatures],
        }
        return cls.model_validate({**known, **rest, "history": history})


class AliasShape(BaseModel):
    """What an alias names."""

    alias: str
    version: str


class AliasesShape(BaseModel):
    """All aliases of a model."""

    aliases: dict[str, str]


class AliasMove(BaseModel):
    """Where an alias should go; with `expect`, only if it names that now (null: nothing)."""

    model_config = ConfigDict(extra="forbid")

    version: Text
    expect: Text | None = None


class PullAsked(BaseModel):
    """What should be pulled: as `mm pull` takes it."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"source": "hf://org/name"}]}
    )

    source: Annotated[str, Field(min_length=1, max_length=2000)]
    model_id: Text | None = None
    version: Text | None = None
    revision: Text | None = None
    aliases: list[Text] = Field(default_factory=list, max_length=50)
    include: list[Glob] = Field(default_factory=list, max_length=200)
    exclude: list[Glob] = Field(default_factory=list, max_length=200)


class PullShape(BaseModel):
    """A pull: waiting, running, done, failed or cancelled. `done` and `total` are bytes."""

    id: str
    kind: str
    status: str
    source: str
    model_id: str | None
    version: str | None
    revision: str | None
    aliases: list[str]
    by: str | None
    done: int
    total: int | None
    stored: int = Field(description="Files that are finished")
    path: str | None = Field(description="The file that was heard of last")
    message: str | None
    hint: str | None
    began: str
    ended: str | None

    @classmethod
    def of(cls, pull: Pull) -> PullShape:
        """A pull, as it is told."""
        return cls(**pull.to_json())


class PullsShape(BaseModel):
    """All pulls that are known, the newest first."""

    pulls: list[PullShape]


def aliases_of(model: Model) -> dict[str, str]:
    """What each alias names."""
    return {alias: entry.version for alias, entry in sorted(model.aliases.items())}


def file_url(entry: ModelEntry, path: str) -> str:
    """Where this hub has a file."""
    return f"/{quote(entry.model_id)}/resolve/{quote(entry.version)}/{quote(path)}"


def _files(entry: ModelEntry, shown: Shown) -> list[FileShape]:
    ordered: Sequence[Any] = sorted(shown.manifest.files, key=lambda file: file.path)
    return [
        FileShape(
            path=file.path,
            size=file.size,
            sha256=file.sha256,
            url=file_url(entry, file.path),
            header=shown.headers.get(file.path),
        )
        for file in ordered
    ]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
