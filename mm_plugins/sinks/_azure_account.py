"""Which account and container a root means, and with which credentials they are reached."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from mm_core import ConfigError, MissingExtraError, redact, remember_secret
from mm_plugins.sinks._keys import check_key

if TYPE_CHECKING:
    from pydantic import SecretStr

    from mm_plugins.sinks._azure_config import AzureOptions

READ = 8 << 20
"""Bytes of one GET."""

_CLOUD = "dfs.core.windows.net"
_HOW_TO_NAME = "write az://container/prefix, or abfss://container@account.dfs.core.windows.net/…"
_SECRET_PART = re.compile(r"(?:AccountKey|SharedAccessSignature)=([^;]+)", re.IGNORECASE)
_ONE_PUT = 256 << 20


class Place(NamedTuple):
    """What a root names. `host` is that of the account where the root tells it, or None."""

    container: str
    host: str | None
    base: str

    @property
    def root(self) -> str:
        """The canonical URL."""
        whole = f"az://{self.container}" if self.host is None else (
            f"abfss://{self.container}@{self.host}"
        )  # fmt: skip
        return f"{whole}/{self.base}".rstrip("/")


def place_of(root: str) -> Place:
    """What `root` names; `ConfigError` for what is no prefix in a container."""
    parts = urlsplit(root)
    container, at, host = parts.netloc.partition("@")
    if ":" in container and at:
        raise ConfigError(
            f"{parts.scheme}://… takes no password in its URL",
            hint="give credentials by the environment, or `options`",
        )
    if not container or ":" in container or (at and not host) or parts.query or parts.fragment:
        raise ConfigError(f"root {redact(root)!r} is no Azure prefix", hint=_HOW_TO_NAME)
    prefix = parts.path.strip("/")
    base = f"{check_key(prefix)}/" if prefix else ""
    return Place(container, _host(host) if at else None, base)


def open_container(place: Place, options: AzureOptions) -> Any:
    """A client of the container; it asks nobody yet.

    `MissingExtraError` without the library, `ConfigError` where no account is named.
    """
    try:
        from azure.storage.blob import BlobServiceClient
    except ImportError as error:
        raise MissingExtraError(
            "Azure needs azure-storage-blob, which is not installed",
            hint="pip install 'model-manager[azure]'",
        ) from error
    settings: dict[str, Any] = {
        "retry_total": 0,  # ours are the tries
        "connection_timeout": 10,
        "read_timeout": 60,
        "max_single_put_size": _ONE_PUT,
        "max_single_get_size": READ,
        "max_chunk_get_size": READ,
        "user_agent": "model-manager",
    }
    connection = _secret(options.connection_string, "AZURE_STORAGE_CONNECTION_STRING")
    if connection and place.host is None and options.endpoint_url is None:
        for part in _SECRET_PART.findall(connection):
            remember_secret(part)
        try:
            service = BlobServiceClient.from_connection_string(connection, **settings)
        except ValueError as error:
            raise ConfigError(
                "the connection string of Azure cannot be read", hint="copy it from the portal"
            ) from error
    else:
        url = _service_url(place, options)
        service = BlobServiceClient(url, credential=_credential(options), **settings)
    return service.get_container_client(place.container)


def account_of(place: Place, options: AzureOptions) -> tuple[str | None, ...]:
    """What decides which account is asked; equal for two that ask the same one."""
    named = options.account_name or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    return place.host, named, options.endpoint_url


def _service_url(place: Place, options: AzureOptions) -> str:
    if options.endpoint_url is not None:
        return options.endpoint_url.rstrip("/")
    if place.host is not None:
        return f"https://{place.host.replace('.dfs.', '.blob.', 1)}"
    account = options.account_name or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    if not account:
        raise ConfigError(
            f"{place.root} does not say in which account the container is",
            hint="set options.account_name, or AZURE_STORAGE_ACCOUNT_NAME, or write "
            f"abfss://{place.container}@ACCOUNT.{_CLOUD}/…",
        )
    return f"https://{account}.blob.core.windows.net"


def _credential(options: AzureOptions) -> Any:
    """The first that is given: a key, a signature, a service principal; else what is found."""
    if options.anon:
        return None
    key = _secret(options.account_key, "AZURE_STORAGE_ACCOUNT_KEY")
    signature = _secret(options.sas_token, "AZURE_STORAGE_SAS_TOKEN")
    if key or signature:
        return key or (signature or "").removeprefix("?")
    try:
        from azure import identity
    except ImportError as error:
        raise MissingExtraError(
            "Azure's credentials need azure-identity, which is not installed",
            hint="pip install 'model-manager[azure]', or give a key or a signature",
        ) from error
    secret = _secret(options.client_secret, "AZURE_STORAGE_CLIENT_SECRET")
    client = options.client_id or os.environ.get("AZURE_STORAGE_CLIENT_ID")
    tenant = options.tenant_id or os.environ.get("AZURE_STORAGE_TENANT_ID")
    if secret and client and tenant:
        return identity.ClientSecretCredential(tenant, client, secret)
    named: Mapping[str, Any] = {"managed_identity_client_id": client} if client else {}
    return identity.DefaultAzureCredential(**named)


def _host(named: str) -> str:
    host = named.lower()
    return host if "." in host else f"{host}.{_CLOUD}"


def _secret(given: SecretStr | None, variable: str) -> str | None:
    value = os.environ.get(variable) if given is None else given.get_secret_value()
    if value:
        remember_secret(value)
    return value or None
