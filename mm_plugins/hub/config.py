"""The section ``serve`` of ``mm.yaml``, as the hub has it."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from mm_core import Names, PluginConfig, Seconds, Size
from mm_plugins.hub.origins import check_glob


def _address(names: list[str]) -> list[str]:
    for name in names:
        ipaddress.ip_network(name, strict=False)
    return names


def _globs(globs: list[str]) -> list[str]:
    return [check_glob(glob) for glob in globs]


def _origin(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise ValueError("it should begin with https:// or http://")
    return text.rstrip("/")


def _template(text: str) -> str:
    if "{id}" not in text:
        raise ValueError("it should have {id} where the id of the model goes")
    return text


class PullThrough(PluginConfig):
    """Where models come from that somebody asks for and the backend does not have."""

    source: Annotated[str, AfterValidator(_template)] = Field(
        default="hf://{id}", description="What is pulled; {id} stands for the model's id"
    )
    models: Names = Field(default_factory=lambda: ["*"], description="Globs of ids it is done for")
    include: Names = Field(default_factory=list, description="As `mm pull --include`")
    exclude: Names = Field(default_factory=list, description="As `mm pull --exclude`")
    pulls: int = Field(default=4, ge=1, le=64, description="Models that may come at once")
    window: Size = Field(
        default=128 << 20,
        ge=16 << 20,
        description="Bytes of a model on its way that are kept in memory for its clients",
    )
    patience: Seconds = Field(
        default=4.0,
        ge=0,
        description="Seconds that a client waits for bytes that it missed, until they are "
        "read from upstream for it alone",
    )


class HubConfig(PluginConfig):
    """Who may ask, from where, and what."""

    host: str = Field(default="127.0.0.1", description="The address to listen on")
    port: int = Field(default=8080, ge=0, le=65535, description="The port; 0 for any free one")
    backend: str | None = Field(
        default=None, description="What is served, by name or URL; the default backend if absent"
    )
    url: Annotated[str, AfterValidator(_origin)] | None = Field(
        default=None, description="What clients call it by; else as each asks for it"
    )
    anonymous_read: bool | None = Field(
        default=None,
        description="Whether anybody may read without a token; if absent, on this machine only",
    )
    private: Names = Field(
        default_factory=list, description="Globs of models that only fitting tokens see"
    )
    gated: Names = Field(
        default_factory=list,
        description="Globs of models that all see, and whose files only fitting tokens read",
    )
    refresh: Seconds = Field(
        default=1.0,
        ge=0,
        description="Seconds for which what the registry said is taken as known",
    )
    token_refresh: Seconds = Field(
        default=5.0, ge=0, description="Seconds until a revoked token no longer works"
    )
    failures: int = Field(
        default=20, ge=1, description="Wrong tokens a minute from one address until it must wait"
    )
    bytes: Literal["proxy", "redirect"] = Field(
        default="proxy",
        description="Whether files pass through the hub, or clients are sent to S3 or GCS for them",
    )
    redirect_for: Seconds = Field(
        default=3600.0,
        ge=60,
        le=7 * 24 * 3600,
        description="Seconds for which such an address is good; it should outlive a download",
    )
    readers: int = Field(
        default=64, ge=1, le=1024, description="Reads from the backend at once, over all clients"
    )
    drain: Seconds = Field(
        default=30.0, ge=0, description="Seconds that running answers get when the server stops"
    )
    trusted_proxies: Annotated[Names, AfterValidator(_address)] = Field(
        default_factory=list,
        description="Addresses or networks of proxies whose X-Forwarded-* are believed",
    )
    tls_certificate: Path | None = Field(default=None, description="A file in PEM form")
    tls_key: Path | None = Field(default=None, description="A file in PEM form")
    uploads: bool = Field(
        default=False, description="Whether tokens of the scope write may upload models"
    )
    pull_through: PullThrough | None = Field(
        default=None, description="Fetch what is asked for and missing, and serve it meanwhile"
    )
    pull_sources: Annotated[Names, AfterValidator(_globs)] = Field(
        default_factory=lambda: ["hf://*"],
        description="Globs of what may be pulled by who asks over the network; no folder, unless "
        "it is listed",
    )
    pulls: int = Field(
        default=2, ge=1, le=64, description="Pulls at once that were asked for over the network"
    )
    page: bool = Field(default=True, description="Whether there is a page for people, at /")
    metrics: bool = Field(default=True, description="Whether /metrics answers")

    @property
    def is_local(self) -> bool:
        """Whether it listens on this machine alone."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def anybody_reads(self) -> bool:
        """Whether a request without a token may read what is not private."""
        return self.is_local if self.anonymous_read is None else self.anonymous_read

    def model_post_init(self, _context: Any) -> None:
        """Refuse halves of what only works whole."""
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key are given both, or neither")
