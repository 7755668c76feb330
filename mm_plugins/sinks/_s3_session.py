"""What s3fs's session knows: where requests go, how they are signed, and who asks."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

from mm_plugins.sinks._s3_sign import Credentials


class Prepared(NamedTuple):
    """A request about the object `key` as botocore would send it; header names in lower case."""

    key: str
    method: str
    url: str
    headers: Mapping[str, str]


class ClientFacts(NamedTuple):
    """What the client was told about connections, and whether it may add checksums.

    `special` tells of proxies or a certificate of its own.
    """

    connect_timeout: float
    read_timeout: float
    certificates: str | bool | None
    special: bool
    checksums: bool


class Identity(NamedTuple):
    """Credentials as they are just now, and the file system that found them."""

    system: Any
    credentials: Credentials | None


class _NotSentError(Exception):
    def __init__(self, request: Any) -> None:
        super().__init__()
        self.request = request


async def prepare(fs: Any, method: str, bucket: str, arguments: Mapping[str, Any]) -> Prepared:
    """Stop a call where botocore would send it.

    The end of its key, which is random, tells it from others at the same time.
    """
    await fs.set_session()
    client = await fs.get_s3(bucket)
    mark = secrets.token_hex(8)

    def stop(request: Any, **_: Any) -> None:
        if mark in request.url:
            raise _NotSentError(request)

    client.meta.events.register_first("before-send.s3", stop, unique_id=mark)
    key = f"{arguments['Key']}{mark}"
    try:
        await getattr(client, method)(Bucket=bucket, **{**arguments, "Key": key})
    except _NotSentError as stopped:
        request = stopped.request
    finally:
        client.meta.events.unregister("before-send.s3", stop, unique_id=mark)
    headers = {name.lower(): _text(value) for name, value in request.headers.items()}
    return Prepared(key, request.method, request.url, headers)


async def facts(fs: Any, bucket: str) -> ClientFacts:
    """What the client of `bucket` was told."""
    await fs.set_session()
    config = (await fs.get_s3(bucket)).meta.config
    return ClientFacts(
        connect_timeout=config.connect_timeout,
        read_timeout=config.read_timeout,
        certificates=fs.client_kwargs.get("verify", fs.session.get_config_variable("ca_bundle")),
        special=bool(config.proxies or config.proxies_config or config.client_cert),
        checksums=getattr(config, "request_checksum_calculation", None) != "when_required",
    )


async def credentials(fs: Any) -> Credentials | None:
    """Who asks just now; a session renews what is about to end."""
    if fs.anon:
        return None
    if fs.key and fs.secret:
        return Credentials(fs.key, fs.secret, fs.token)
    await fs.set_session()
    found = await fs.session.get_credentials()
    if found is None:
        return None
    frozen = await found.get_frozen_credentials()
    return Credentials(frozen.access_key, frozen.secret_key, frozen.token)


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
