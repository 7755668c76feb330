"""Who makes a commit, as the log notes it: for people, and nothing depends on it."""

from __future__ import annotations

import os

_LONGEST = 200


def default_writer() -> str:
    """``user@host/pid`` of this process."""
    return f"{_user()}@{_host()}/{os.getpid()}"


def cleaned(writer: str) -> str:
    """`writer` as it may stand in a log that others read: one short line, no secret in it."""
    from mm_core.redaction import redact

    line = "".join(char if char.isprintable() else " " for char in redact(writer))
    return line.strip()[:_LONGEST] or default_writer()


def _user() -> str:
    named = next((os.environ[n] for n in ("LOGNAME", "USER", "USERNAME") if os.environ.get(n)), "")
    word = "".join(char for char in named if char.isprintable() and char not in "@/ ")
    return word[:64] or _account()


def _account() -> str:
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):  # Windows, or a container whose user has no name
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"


def _host() -> str:
    if hasattr(os, "uname"):
        return os.uname().nodename
    import socket

    return socket.gethostname()
