"""AWS Signature Version 4 in headers, by its public specification.

Botocore signs an upload's part in about a millisecond. Here the key of the day is
derived once, and a request costs two digests.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, urlencode

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED = "UNSIGNED-PAYLOAD"


class Credentials(NamedTuple):
    """Who asks. Its text shows nothing of it."""

    key: str
    secret: str
    token: str | None = None

    def __repr__(self) -> str:
        return "Credentials(***)"


class Signer:
    """Signs requests to one service in one region. Any thread may use it."""

    def __init__(self, region: str, service: str = "s3") -> None:
        self._where = f"{region}/{service}/aws4_request"
        self._steps = (region, service, "aws4_request")
        self._latest: tuple[str, str, bytes] = ("", "", b"")

    def sign(
        self,
        who: Credentials,
        method: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        *,
        moment: str | None = None,
    ) -> dict[str, str]:
        """`headers` with what proves that `who` sends them; all of them are signed.

        `path` and `query` are as they are sent, and canonical: see `encoded` and
        `canonical_query`. Names in `headers` are in lower case and include ``host``
        and ``x-amz-content-sha256``. `moment` is now, as ``20130524T000000Z``.
        """
        when = moment or time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        signed = {**headers, "x-amz-date": when}
        if who.token is not None:
            signed["x-amz-security-token"] = who.token
        listed = ";".join(sorted(signed))
        payload = signed["x-amz-content-sha256"]
        scope, signature = self._signature(who, f"{method}\n{path}\n{query}", signed, payload, when)
        signed["authorization"] = (
            f"{ALGORITHM} Credential={who.key}/{scope}, "
            f"SignedHeaders={listed}, Signature={signature}"
        )
        return signed

    def signed_query(
        self, who: Credentials, path: str, host: str, seconds: int, *, moment: str | None = None
    ) -> str:
        """The query with which anybody may GET `path` at `host` for so long, as `who` may now."""
        when = moment or time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        values = {
            "X-Amz-Algorithm": ALGORITHM,
            "X-Amz-Credential": f"{who.key}/{when[:8]}/{self._where}",
            "X-Amz-Date": when,
            "X-Amz-Expires": str(seconds),
            "X-Amz-SignedHeaders": "host",
        }
        if who.token is not None:
            values["X-Amz-Security-Token"] = who.token
        query = canonical_query(urlencode(values))
        _, signature = self._signature(who, f"GET\n{path}\n{query}", {"host": host}, UNSIGNED, when)
        return f"{query}&X-Amz-Signature={signature}"

    def _signature(
        self, who: Credentials, asked: str, headers: Mapping[str, str], payload: str, when: str
    ) -> tuple[str, str]:
        """The scope of a signature, and the signature; `asked` is method, path and query."""
        names = sorted(headers)
        lines = "\n".join([f"{name}:{' '.join(headers[name].split())}" for name in names])
        request = f"{asked}\n{lines}\n\n{';'.join(names)}\n{payload}"
        scope = f"{when[:8]}/{self._where}"
        digest = hashlib.sha256(request.encode()).hexdigest()
        text = f"{ALGORITHM}\n{when}\n{scope}\n{digest}"
        key = self._key(who.secret, when[:8])
        return scope, hmac.digest(key, text.encode(), "sha256").hex()

    def _key(self, secret: str, day: str) -> bytes:
        """The key of the day, which is the same for all requests of that day."""
        known_secret, known_day, key = self._latest
        if (secret, day) != (known_secret, known_day):
            key = f"AWS4{secret}".encode()
            for step in (day, *self._steps):
                key = hmac.digest(key, step.encode(), "sha256")
            self._latest = (secret, day, key)
        return key


def encoded(text: str, *, safe: str = "/") -> str:
    """`text` percent-encoded as S3 does: all but letters, digits, ``-._~`` and `safe`."""
    return quote(text, safe=safe + "-._~")


def canonical_query(query: str) -> str:
    """The query of a URL in the order and encoding in which it is signed."""
    pairs = [
        (encoded(name, safe=""), encoded(value, safe=""))
        for name, value in parse_qsl(query, keep_blank_values=True)
    ]
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))
