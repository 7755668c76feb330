"""What clients send with a commit is read with care: cards, and leave to upload."""

from __future__ import annotations

from datetime import datetime, timezone
from urllib.parse import parse_qsl

import pytest

pytest.importorskip("starlette")

from mm_plugins._front_matter import front_matter
from mm_plugins.hub.staging import is_good, ticket
from mm_plugins.hub.tokens import Token

pytestmark = pytest.mark.unit

BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


def test_front_matter():
    """What stands between the first two lines of dashes, and no more than that."""
    assert front_matter("---\nlicense: mit\ntags: [a, b]\n---\n# x\nlicense: no") == {
        "license": "mit",
        "tags": ["a", "b"],
    }
    assert front_matter("# x") == {}


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]", BOMB, "a: !!bool x", "a: !!int ''", "a: !!timestamp x", "? [a]\n: b",
        "a: 2024-02-31", "a: " + "[" * 5000, "a: " + "9" * 5000, "a: !!python/name:os.system",
        "- a", "a: \x00",
    ],
)  # fmt: skip
def test_front_matter_that_cannot_be_read(text):
    """It counts as none, and takes neither time nor memory."""
    assert front_matter(f"---\n{text}\n---\n") == {}


def test_a_ticket_is_good_for_what_it_says():
    """And for nothing else, whatever the letters of its signature."""
    now = datetime.now(timezone.utc)
    token = Token(
        id="0" * 12, name="x", scope="write", models=("org/*",), sha256="f" * 64, created=now
    )
    query = dict(parse_qsl(ticket(token, "org/model", "oid", 5)))
    assert is_good(token, "oid", query)
    assert not is_good(token, "other", query)
    for changed in ({"size": "6"}, {"model": "org/other"}, {"until": "é"}, {"mac": "é"}):
        assert not is_good(token, "oid", {**query, **changed})
    assert not is_good(token, "oid", {})
