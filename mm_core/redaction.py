"""Keep secrets out of messages, logs and URLs.

Two nets: values that this process was given as secrets (`remember_secret`) are
replaced wherever they turn up; and what looks like a secret (tokens, signed
URLs, ``Authorization`` values, private keys) is replaced even if nobody told us.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from urllib.parse import quote, urlsplit, urlunsplit

MASK = "***"
"""What stands in a secret's place."""

_MIN_LENGTH = 6  # shorter values are words, and would mask half of every text

_SECRET_NAME = re.compile(
    r"token(?!iz)|secret|passw|credential|authorization|cookie|signature|bearer"
    r"|(?:private|api|access|account|shared|signing|encryption|auth)[_-]?key|(?:^|[_-])key$|(?:^|[_-])(?:sig|sas|pwd|auth)$",
    re.IGNORECASE,
)
_NOT_SECRET_NAME = re.compile(r"(?:file|path|dir|url|uri|type|ttl|id)$", re.IGNORECASE)

_FIELDS = (
    r"X-Amz-Signature|X-Amz-Credential|X-Amz-Security-Token|X-Goog-Signature|X-Goog-Credential"
    r"|AWSAccessKeyId|Signature|Credential|sig|token|access_token|refresh_token|id_token"
    r"|private_token|session_token|api[_-]?key|apikey|password|passwd|pwd|secret|client_secret"
    r"|secret_access_key|aws_secret_access_key|aws_session_token|accessToken|account_key"
)
_SUSPECT = re.compile(
    r"://|=|%3D|hf_|mm_[0-9a-f]|A[KS]IA|AIza|ya29|eyJ|gh[pousr]_|github_pat|PRIVATE KEY"
    r"|(?i:bearer|basic|authorization|cookie|api-key|token|secret|passw)"
)

_Replacement = str | Callable[["re.Match[str]"], str]
_RULES: tuple[tuple[re.Pattern[str], _Replacement], ...] = (
    (
        re.compile(
            r"-----BEGIN ([A-Z ]*)PRIVATE KEY-----.*?(?:-----END \1PRIVATE KEY-----|\Z)", re.DOTALL
        ),
        "-----PRIVATE KEY " + MASK + "-----",
    ),
    # `user:password@` in any URL; a lone name only where it can be a token: abfs://box@account
    (re.compile(r"(://)[^/?#\s\"'<>@:]*:[^/?#\s\"'<>]*@"), rf"\1{MASK}@"),
    (re.compile(r"(\bhttps?://)[^/?#\s\"'<>]*@", re.IGNORECASE), rf"\1{MASK}@"),
    (
        re.compile(
            r"((?:authorization|x-api-key|x-auth-token|x-amz-security-token|cookie)"
            r"['\"]?\s*[:=]\s*(?:b?['\"])?(?:(?:bearer|basic|token|digest|aws4-hmac-sha256)\s+)?)"
            r"[^\s,;'\"\]})]+",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
    (re.compile(r"(\bbearer\s+)[\w.~+/=*-]{6,}", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(r"(\b[Bb][Aa][Ss][Ii][Cc]\s+)(?=[\w+/]*[A-Z0-9=])[\w+/]{8,}=*"), rf"\1{MASK}"),
    (
        re.compile(rf"((?<![\w.-])(?:{_FIELDS})=)[^&#\s\"'<>,;)\]}}]+", re.IGNORECASE),
        rf"\1{MASK}",
    ),
    (
        re.compile(rf"((?:%3F|%26)(?:{_FIELDS})%3D)(?:(?!%26)[^&\s\"'])+", re.IGNORECASE),
        rf"\1{MASK}",
    ),
    (
        re.compile(rf"(([\"'])(?:{_FIELDS})\2\s*:\s*([\"']))(?:\\.|(?!\3).)+", re.IGNORECASE),
        rf"\1{MASK}",
    ),
    (re.compile(r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{10,}"), f"hf_{MASK}"),
    (re.compile(r"(?<![A-Za-z0-9])mm_[0-9a-f]{52}(?![0-9a-f])"), f"mm_{MASK}"),
    (re.compile(r"(?<![A-Z0-9])(?:AKIA|ASIA)[A-Z0-9]{12,}"), MASK),
    (re.compile(r"(?<![A-Za-z0-9])(?:gh[pousr]_|github_pat_)\w{20,}"), MASK),
    (re.compile(r"(?<![A-Za-z0-9])(?:ya29\.|AIza)[\w-]{20,}"), MASK),
    (re.compile(r"(?<![A-Za-z0-9])eyJ[\w-]{4,}\.[\w-]{4,}\.[\w-]*"), MASK),
)


class _Remembered:
    """The secrets of this process.

    One for the whole process, on purpose: a token read from a file by one
    manager may turn up in a traceback that another part logs, and a log handler
    belongs to nobody in particular. It only ever grows, and it is never shown.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forms: frozenset[str] = frozenset()
        self._pattern: re.Pattern[str] | None = None

    def add(self, value: str) -> None:
        forms = {value, quote(value, safe=""), json.dumps(value)[1:-1]}
        with self._lock:
            if forms <= self._forms:
                return
            self._forms |= forms
            longest_first = sorted(self._forms, key=len, reverse=True)
            self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    def mask(self, text: str) -> str:
        pattern = self._pattern
        return text if pattern is None else pattern.sub(MASK, text)


_remembered = _Remembered()


def remember_secret(value: str) -> None:
    """From now on `redact` replaces `value` wherever it stands, also URL-quoted.

    Values under 6 characters are not kept: they would mask ordinary words.
    """
    value = value.strip()
    if len(value) >= _MIN_LENGTH and value.strip("*"):
        _remembered.add(value)


def redact(text: str) -> str:
    """`text` with every secret replaced by ``***``. Doing it twice changes nothing."""
    if len(text) < _MIN_LENGTH:
        return text
    text = _remembered.mask(text)
    if _SUSPECT.search(text) is None:
        return text
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def redact_url(url: str) -> str:
    """`url` without a password and without the values of secret query parameters.

    Stricter than `redact`: any parameter whose name sounds secret is masked.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return redact(url)
    if not parts.query:
        return redact(url)
    query = "&".join(_masked_parameter(item) for item in parts.query.split("&"))
    return redact(urlunsplit(parts._replace(query=query)))


def is_secret_name(name: str) -> bool:
    """Whether a setting, header or parameter called `name` most likely holds a secret."""
    return bool(_SECRET_NAME.search(name)) and not _NOT_SECRET_NAME.search(name)


def _masked_parameter(item: str) -> str:
    name, equals, value = item.partition("=")
    return f"{name}={MASK}" if equals and value and is_secret_name(name) else item
