"""Where requests about objects go, learnt from what botocore would send and proven by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from mm_plugins.sinks._s3_session import ClientFacts, Prepared
from mm_plugins.sinks._s3_sign import (
    ALGORITHM,
    UNSIGNED,
    Credentials,
    Signer,
    canonical_query,
    encoded,
)

_PORTS = {"http": 80, "https": 443}
_OF_ONE_REQUEST = frozenset(
    {
        "accept-encoding",
        "authorization",
        "content-length",
        "content-md5",
        "expect",
        "host",
        "transfer-encoding",
        "user-agent",
        "x-amz-content-sha256",
        "x-amz-date",
        "x-amz-decoded-content-length",
        "x-amz-sdk-checksum-algorithm",
        "x-amz-security-token",
        "x-amz-trailer",
        "x-amzn-trace-id",
    }
)
_FAMILIES = ("amz-sdk-", "x-amz-checksum-")


class NotUnderstoodError(Exception):
    """Botocore would send something that this module cannot; the text says what."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where one kind of request goes, with the headers that all of the kind have."""

    method: str
    origin: str
    folder: str
    headers: Mapping[str, str]
    signer: Signer | None

    def request(
        self, who: Credentials | None, key: str, query: str, headers: Mapping[str, str]
    ) -> tuple[str, dict[str, str]]:
        """The URL and the headers of a request about `key`; `query` is canonical."""
        path = self.folder + encoded(key)
        url = f"{self.origin}{path}?{query}" if query else f"{self.origin}{path}"
        every = {**self.headers, **headers}
        if self.signer is not None and who is not None:
            every["x-amz-content-sha256"] = UNSIGNED
            every = self.signer.sign(who, self.method, path, query, every)
        return url, every

    def signed_url(self, who: Credentials | None, key: str, seconds: int) -> str | None:
        """A URL of `key` for whoever has it; None where it would need a header, or nobody signs."""
        if self.signer is None or who is None or self.headers.keys() - {"host"}:
            return None
        path = self.folder + encoded(key)
        query = self.signer.signed_query(who, path, self.headers["host"], seconds)
        return f"{self.origin}{path}?{query}"

    @property
    def secure(self) -> bool:
        """Whether TLS keeps the bytes whole on their way."""
        return self.origin.startswith("https:")


def learn(prepared: Prepared, who: Credentials | None, facts: ClientFacts) -> Route:
    """The way of all requests that are like `prepared`.

    Raises `NotUnderstoodError` unless the same signature as botocore's comes out
    for the same request: whatever a client was told that this module does not
    know of would make it another.
    """
    parts = urlsplit(prepared.url)
    if facts.special or (facts.certificates is not None and parts.scheme == "https"):
        raise NotUnderstoodError("proxies or certificates of the AWS configuration")
    path, end = parts.path, encoded(prepared.key)
    if not path.endswith(f"/{end}"):
        raise NotUnderstoodError("a URL that does not end with the key")
    host = _host(parts.scheme, parts.hostname or "", parts.port)
    signed = prepared.headers.get("authorization")
    signer = None
    if signed is not None:
        signer = _signer(prepared, signed, who, host)
    elif who is not None:
        raise NotUnderstoodError("an unsigned request")
    return Route(
        method=prepared.method,
        origin=f"{parts.scheme}://{parts.netloc}",
        folder=path[: -len(end)],
        headers={"host": host, **_fixed(prepared.headers)},
        signer=signer,
    )


def _signer(prepared: Prepared, signed: str, who: Credentials | None, host: str) -> Signer:
    algorithm, _, rest = signed.partition(" ")
    fields = dict(field.strip().partition("=")[::2] for field in rest.split(","))
    scope = fields.get("Credential", "").split("/")[-4:]
    if algorithm != ALGORITHM or len(scope) != 4 or who is None:
        raise NotUnderstoodError(f"a signature by {algorithm}")
    if prepared.headers.get("x-amz-security-token") != who.token:
        raise NotUnderstoodError("a signature by other credentials")
    _, region, service, _ = scope
    if service != "s3":
        raise NotUnderstoodError(f"a signature for {service}")
    signer = Signer(region, service)
    parts = urlsplit(prepared.url)
    sent = {**prepared.headers, "host": host}
    ours = signer.sign(
        who,
        prepared.method,
        parts.path,
        canonical_query(parts.query),
        {name: sent.get(name, "") for name in fields.get("SignedHeaders", "").split(";")},
        moment=sent.get("x-amz-date"),
    )
    if ours["authorization"] != signed:
        raise NotUnderstoodError("another signature than ours")
    return signer


def _fixed(headers: Mapping[str, str]) -> dict[str, str]:
    """What was set for all such requests: encryption, metadata, who pays."""
    kept = {
        name: value
        for name, value in headers.items()
        if name not in _OF_ONE_REQUEST and not name.startswith(_FAMILIES)
    }
    coding = kept.pop("content-encoding", "")
    rest = [part for part in coding.split(",") if part.strip() not in ("", "aws-chunked")]
    return {**kept, "content-encoding": ",".join(rest)} if rest else kept


def _host(scheme: str, name: str, port: int | None) -> str:
    name = f"[{name}]" if ":" in name else name
    return name if port in (None, _PORTS.get(scheme)) else f"{name}:{port}"
