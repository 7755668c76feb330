"""The sections of ``mm.yaml``: their keys, types, limits and defaults.

What belongs to a plugin (all of a backend or source but its ``type``) is checked
against that plugin's own ``Config``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
)

from mm_core.exceptions import UsageError
from mm_core.names import check_alias, check_model_id, check_version
from mm_core.schemas import ModelType
from mm_core.units import parse_duration, parse_rate, parse_size
from mm_core.weights import parse_weights

BUILT_IN_POLICIES: Mapping[str, Mapping[str, Any]] = {"default": {"formats": {}, "scan": {}}}
"""The sets that hold where ``mm.yaml`` has none of that name."""

LEAST_MEMORY = 32 << 20
"""The smallest ``defaults.memory``, in bytes."""
MOST_MEMORY = 1 << 40
"""The largest ``defaults.memory``, in bytes: more is a slip of the pen."""


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is wanted, not true or false")  # noqa: TRY004  # pydantic's way
    return value


def _sensible(value: int) -> int:
    if value < LEAST_MEMORY:
        raise ValueError(f"it should be at least {LEAST_MEMORY >> 20}MiB")
    if value > MOST_MEMORY:
        raise ValueError(f"it should be at most {MOST_MEMORY >> 40}TiB")
    return value


def _above_nothing(value: int) -> int:
    if value < 1:
        raise ValueError("it should be above 0; leave it out for no limit")
    return value


def _choice(text: str) -> str:
    try:
        return str(parse_weights(text))
    except UsageError as error:
        raise ValueError(f"{error}; {error.hint}") from error


def _settings(value: Any) -> Any:
    return {} if value is None else value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Size = Annotated[
    int,
    BeforeValidator(parse_size),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "examples": ["256MiB"]}]}
    ),
]
Rate = Annotated[
    int,
    BeforeValidator(parse_rate),
    AfterValidator(_above_nothing),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "examples": ["50MiB"]}]}
    ),
]
Seconds = Annotated[
    float,
    BeforeValidator(parse_duration),
    WithJsonSchema(
        {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "examples": ["24h"]}]}
    ),
]
Count = Annotated[int, BeforeValidator(_no_bool)]
Alias = Annotated[str, AfterValidator(check_alias)]
Version = Annotated[str, AfterValidator(check_version)]
Names = Annotated[
    list[str],
    BeforeValidator(_listed),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


class Section(BaseModel):
    """The base of all sections: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Defaults(Section):
    """What holds where a command does not say otherwise."""

    backend: str | None = Field(default=None, description="The backend, by name or URL")
    jobs: Count = Field(default=8, ge=1, le=64, description="Files at once")
    connections: Count = Field(
        default=8, ge=1, le=1024, description="Connections to a source at once, over all files"
    )
    memory: Annotated[Size, AfterValidator(_sensible)] = Field(
        default=128 << 20, description="Bytes of all buffers together, 32MiB to 1TiB"
    )
    limit_rate: Rate | None = Field(
        default=None, description="Bytes a second that a whole process reads; no limit if absent"
    )
    claim_timeout: Seconds = Field(
        default=60.0,
        gt=0,
        description="Seconds without a heartbeat until another may take over a pull",
    )
    retries: Count = Field(default=5, ge=0, le=100, description="Tries again without progress")
    offline: bool = Field(default=False, description="Ask no source over the network")
    commit_timeout: Seconds = Field(
        default=60.0, gt=0, description="Seconds to keep trying to reach the registry"
    )
    weights: Annotated[str, AfterValidator(_choice)] | None = Field(
        default=None,
        description="The format of weights to prefer where a model has several: safetensors, gguf, "
        "gguf:Q4_K_M, onnx and others; all if absent",
    )
    writer: str | None = Field(
        default=None, description="Who commits, as the history shows it: user@host/pid if absent"
    )


class PolicySet(BaseModel):
    """A set of policies: what a model must be like.

    Each other key is a kind of policy, as a plugin calls it, with the settings of that
    kind; a key without any settings takes their defaults.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Annotated[dict[str, Any], BeforeValidator(_settings)]]

    backends: Names | None = Field(
        default=None, description="Where the set holds: names or URLs; everywhere if absent"
    )


class WantedModel(Section):
    """One model that should be there: the wanted state."""

    source: str = Field(description="Where it comes from, as `mm pull` takes it")
    revision: str | None = Field(default=None, description="A branch, tag or commit of the source")
    include: Names = Field(default_factory=list, description="Globs of files to take")
    exclude: Names = Field(default_factory=list, description="Globs of files to leave out")
    to: Names = Field(default_factory=list, description="Backends; the default one if empty")
    aliases: list[Alias] = Field(default_factory=list, description="Aliases to set")
    version: Version | None = Field(
        default=None, description="The version, if the source fixes none"
    )
    type: ModelType | None = Field(default=None, description="What the model does")
    weights: Annotated[str, AfterValidator(_choice)] | None = Field(
        default=None, description="The one format of weights to take, of several"
    )


class Retention(Section):
    """What garbage collection leaves alone."""

    keep_last: Count | None = Field(
        default=None, ge=1, description="Newest versions of each model to keep"
    )
    keep_aliases: list[Alias] = Field(
        default_factory=list, description="Aliases whose versions are kept"
    )
    grace: Seconds | None = Field(default=None, ge=0, description="Seconds before an orphan goes")


class RegistrySection(Section):
    """How the registries of all backends are kept honest."""

    remember: bool = Field(
        default=True, description="Refuse a registry that went back behind what was seen of it"
    )
    signing_key: str | None = Field(
        default=None, description="A file with the ed25519 key that signs what is committed"
    )
    trusted_keys: Names = Field(
        default_factory=list,
        description="Public keys, in files or as base64; what none of them signed is refused",
    )


class SigningSection(Section):
    """Signatures over models: the key that makes them, and whose count."""

    key_file: str | None = Field(
        default=None, description="A file with the private key that `mm sign` signs with"
    )
    password: str | None = Field(default=None, description="The password of that key")
    certificate: str | None = Field(
        default=None, description="A file with the certificate that goes with that key"
    )
    chain: Names = Field(
        default_factory=list, description="Files with the certificates that lead to its root"
    )
    public_keys: Names = Field(
        default_factory=list, description="Files with public keys whose signatures count"
    )
    certificate_roots: Names = Field(
        default_factory=list, description="Files with roots whose certificates' signatures count"
    )


DEFAULT_SERVICE = "hub"
"""What is served where ``serve.type`` names nothing."""


class ServeSection(BaseModel):
    """The service that `mm serve` runs: its type, and the settings of that type."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str = Field(default=DEFAULT_SERVICE, description="The kind, as a plugin calls it")


ModelId = Annotated[str, AfterValidator(check_model_id)]
EntryName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class Entry(BaseModel):
    """A backend or source: its type, and the settings of that type."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str = Field(description="The kind, as a plugin calls it")


class Document(Section):
    """All of ``mm.yaml``."""

    version: Literal[1] = Field(default=1, description="The version of this format")
    defaults: Defaults = Field(default_factory=Defaults)
    backends: dict[EntryName, Entry] = Field(default_factory=dict)
    sources: dict[EntryName, Entry] = Field(default_factory=dict)
    policies: dict[EntryName, PolicySet] = Field(default_factory=dict)
    models: dict[ModelId, WantedModel] = Field(default_factory=dict)
    retention: Retention = Field(default_factory=Retention)
    registry: RegistrySection = Field(default_factory=RegistrySection)
    signing: SigningSection = Field(default_factory=SigningSection)
    serve: ServeSection = Field(default_factory=ServeSection)
