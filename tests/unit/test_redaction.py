"""Secrets are kept out of every text."""

import secrets

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mm_core import redact, redact_url, redaction, remember_secret
from mm_core.redaction import is_secret_name

pytestmark = pytest.mark.unit

S = "s3cr3tV4lu3"
KEY = "-----BEGIN {0}PRIVATE KEY-----\nMIIE" + S + "\n-----END {0}PRIVATE KEY-----"


@pytest.fixture(autouse=True)
def own_memory(monkeypatch):
    """What these tests remember must not mask the words of other tests."""
    monkeypatch.setattr(redaction, "_remembered", redaction._Remembered())


@pytest.mark.parametrize(
    "text",
    [
        f"token hf_{S}{S} is wrong",
        f"https://me:{S}@host/path",
        f"https://{S}@host/path",
        f"proxy http://me:{S}@proxy:3128 refused",
        f"GET https://b.s3.amazonaws.com/k?X-Amz-Signature={S}&X-Amz-Date=2026",
        f"https://b/k?X-Amz-Credential=AKIA{S}%2F20260101&x=1",
        f"https://b/k?a=1&X-Amz-Security-Token={S}%2F%2B{S}",
        f"https://b/k?X-Goog-Signature={S}",
        f"https://cdn/k?Expires=1&Signature={S}~&Key-Pair-Id=K",
        f"https://a.blob.core.windows.net/c/k?sv=1&sig={S}%3D",
        f"https://h/p?token={S}",
        f"https://h/p?access_token={S}#part",
        f"/login?next=https%3A%2F%2Fh%3FX-Amz-Signature%3D{S}%26x%3D1",
        f"Authorization: Bearer {S}",
        f"authorization: {S}",
        f"{{'Authorization': 'Bearer {S}', 'Accept': '*/*'}}",
        f"{{'authorization': b'Basic {S}'}}",
        f"header Bearer {S}",
        f"header Basic {S}==",
        f"AWS4-HMAC-SHA256 Credential={S}/x, SignedHeaders=host, Signature={S}",
        f"X-Api-Key: {S}",
        f"Set-Cookie: {S}",
        f'{{"accessToken": "{S}", "exp": 1}}',
        f'{{"token": "a\\"{S}"}}',
        KEY.format("RSA "),
        KEY.format("").replace("\n", "\\n"),
        KEY.format("EC ").rpartition("\n")[0],
        f"ghp_{S}{S}",
        f"eyJhbGciOi.{S}.{S}",
        f"aws_secret_access_key={S}/{S}",
    ],
)
def test_what_looks_like_a_secret_is_masked(text):
    """Tokens, signed URLs, credentials in headers and private keys do not come through."""
    assert S not in redact(text)
    assert "***" in redact(text)
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize("key", ["AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE"])
def test_access_keys_are_masked(key):
    """The ids of AWS keys are masked wherever they stand."""
    assert key not in redact(f"the key {key} is not allowed")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc",
        "hf://org/name@main",
        "http://localhost:8080/org/name@main",
        "abfs://container@account.dfs.core.windows.net/models",
        "see https://huggingface.co/docs?page=2&sort=likes#top",
        "basic information about bearer",
        "hf_hub and hf_xet are libraries",
        "the tokenizer has 32000 tokens; max_new_tokens=512",
        "models/org/name/c9745ed1d9f207416be6d2e6f8de32d1f16199bf/model.safetensors",
        "sha256:" + "ab" * 32,
    ],
)
def test_ordinary_text_is_left_alone(text):
    """What is no secret stays readable."""
    assert redact(text) == text


def test_what_was_remembered_is_masked_everywhere():
    """A value that was named as a secret is masked, also URL-quoted and within JSON."""
    value = f'p/w "{secrets.token_hex(8)}"'
    remember_secret(value)
    from json import dumps
    from urllib.parse import quote

    for form in (value, quote(value, safe=""), dumps({"x": value})):
        assert value.split('"')[1] not in redact(f"before {form} after")


def test_short_words_are_not_remembered():
    """A "secret" of a few letters would mask ordinary words."""
    remember_secret("model")
    assert redact("this model is fine") == "this model is fine"


def test_a_longer_secret_wins_over_a_shorter_one_within_it():
    """No tail of a secret is left standing."""
    short = secrets.token_hex(6)
    remember_secret(short)
    remember_secret(short + "-tail")
    assert redact(f"<{short}-tail>") == "<***>"


def test_redact_url_masks_all_that_sounds_secret():
    """In a URL any parameter with a telling name is masked, and the rest still works."""
    url = "https://u:p@h:8443/a%20b?x_secret_y=1&page=2&api-key=3#f"
    assert redact_url(url) == "https://***@h:8443/a%20b?x_secret_y=***&page=2&api-key=***#f"
    assert redact_url("https://[bad/x?token=1abcde") == "https://[bad/x?token=***"
    assert redact_url("./models") == "./models"


@pytest.mark.parametrize("name", ["token", "HF_TOKEN", "api_key", "key", "secret", "Authorization",
                                  "aws_secret_access_key", "password", "X-Api-Key", "VENDOR_KEY"])  # fmt: skip
def test_secret_names_are_known(name):
    """Settings, headers and variables with such names hold secrets."""
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["tokenizer", "keep_aliases", "token_file", "root", "aws_access_key_id",
                                  "credentials_path", "token_url", "monkey"])  # fmt: skip
def test_other_names_are_not(name):
    """Names that only sound alike hold no secret."""
    assert not is_secret_name(name)


@settings(
    max_examples=200,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.text(), st.text(alphabet="abcXYZ019", min_size=6, max_size=20), st.text())
def test_a_remembered_secret_never_survives(before, value, after):
    """Whatever stands around it, and doing it twice changes nothing."""
    remember_secret(value)
    once = redact(f"{before}{value}{after}")
    assert value not in once
    assert redact(once) == once


def test_long_text_does_not_take_forever():
    """Text made to be slow for patterns is done at once; the time-out of the test is the judge."""
    for bad in ("://" * 50_000, "eyJ" + "a." * 50_000, "-----BEGIN PRIVATE KEY-----" * 2_000,
                "authorization " * 20_000, "'token':" * 20_000, "a:" * 50_000 + "@", "=" * 200_000):  # fmt: skip
        redact(bad)
