"""Times as stores write them."""

from __future__ import annotations

import re
from datetime import datetime, timezone

_FRACTION = re.compile(r"\.(\d+)")


def parse_time(text: str) -> datetime:
    """An RFC 3339 time, in UTC, with any number of digits after the second.

    Python 3.10 itself takes three or six, and no ``Z``. A time without a zone is UTC.
    """
    exact = _FRACTION.sub(lambda found: f".{found[1][:6]:0<6}", text.upper().replace("Z", "+00:00"))
    moment = datetime.fromisoformat(exact)
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).astimezone(
        timezone.utc
    )
