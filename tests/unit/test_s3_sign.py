"""SigV4: AWS's published examples, and botocore's own signatures for odd keys."""

from __future__ import annotations

import hashlib
import random
import time
from urllib.parse import parse_qsl, urlsplit

import pytest

from mm_core.testing.sinks import ODD_KEYS
from mm_plugins.sinks._s3_sign import UNSIGNED, Credentials, Signer, canonical_query, encoded

pytestmark = pytest.mark.unit

WHO = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
EMPTY = hashlib.sha256(b"").hexdigest()
HOST = "examplebucket.s3.amazonaws.com"


@pytest.mark.parametrize(
    ("method", "path", "query", "headers", "signature"),
    [
        (
            "GET",
            "/test.txt",
            "",
            {"range": "bytes=0-9"},
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        (
            "PUT",
            "/test%24file.text",
            "",
            {
                "date": "Fri, 24 May 2013 00:00:00 GMT",
                "x-amz-storage-class": "REDUCED_REDUNDANCY",
                "x-amz-content-sha256": hashlib.sha256(b"Welcome to Amazon S3.").hexdigest(),
            },
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
        (
            "GET",
            "/",
            "lifecycle",
            {},
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        ),
        (
            "GET",
            "/",
            "prefix=J&max-keys=2",
            {},
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
    ],
)
def test_the_published_examples_come_out(method, path, query, headers, signature):
    """The four of "Signature Calculations for the Authorization Header" in the S3 reference."""
    signed = Signer("us-east-1").sign(
        WHO,
        method,
        path,
        canonical_query(query),
        {"host": HOST, "x-amz-content-sha256": EMPTY, **headers},
        moment="20130524T000000Z",
    )
    assert signed["authorization"].endswith(f"Signature={signature}")
    assert signed["authorization"].startswith(
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
    )


ODD = [*ODD_KEYS, "//", "a//b", "~-._", "%2F", "a b+c%20d", "\x7f", "é/模/\U0001d49c", "*:=&?#@!"]
ODD += ["".join(random.Random(n).choices("aZ09 /+%&=?#~é模!*'()", k=30)) for n in range(40)]


@pytest.mark.parametrize("key", ODD)
@pytest.mark.parametrize("token", [None, "FwoGZXIvYXdz/token+with=odd"])
def test_botocore_signs_the_same(key, token):
    """Part of an upload under any key, with and without a session's token."""
    pytest.importorskip("botocore")
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials as Botos

    path = f"/bucket/{encoded(key)}"
    query = f"partNumber=7&uploadId={encoded('u/+ =~', safe='')}"
    request = AWSRequest(
        "PUT",
        f"http://127.0.0.1:9000{path}?{query}",
        headers={"x-amz-meta-odd": " a   b ", "x-amz-checksum-crc32": "AAAAAA=="},
    )
    request.context["payload_signing_enabled"] = False
    request.context["has_streaming_input"] = True
    auth = S3SigV4Auth(Botos(WHO.key, WHO.secret, token), "s3", "eu-west-1")
    auth.payload = lambda _: UNSIGNED
    auth.add_auth(request)
    ours = Signer("eu-west-1").sign(
        WHO._replace(token=token),
        "PUT",
        path,
        query,
        {
            "host": "127.0.0.1:9000",
            "x-amz-content-sha256": request.headers["X-Amz-Content-SHA256"],
            "x-amz-meta-odd": " a   b ",
            "x-amz-checksum-crc32": "AAAAAA==",
        },
        moment=request.context["timestamp"],
    )
    assert ours["authorization"] == request.headers["Authorization"]
    assert urlsplit(request.url).path == path


def test_the_key_of_the_day_is_derived_anew_for_another_day_secret_or_region():
    """What is kept between requests never signs for somebody or some time else."""
    headers = {"host": HOST, "x-amz-content-sha256": UNSIGNED}
    signer = Signer("us-east-1")

    def signature(signer, who, moment):
        return signer.sign(who, "GET", "/", "", headers, moment=moment)["authorization"][-64:]

    other = WHO._replace(secret="another")
    moments = ("20130524T000000Z", "20130525T000000Z")
    seen = [signature(signer, who, m) for who in (WHO, other, WHO) for m in moments]
    fresh = [signature(Signer("us-east-1"), w, m) for w in (WHO, other, WHO) for m in moments]
    assert seen == fresh
    assert len(set(seen)) == 4
    assert signature(Signer("eu-west-1"), WHO, moments[0]) not in seen


def test_credentials_do_not_show_themselves():
    """Neither by repr nor by str, as a log or a traceback would."""
    assert WHO.secret not in f"{WHO} {WHO!r} {[WHO]}"
    assert WHO.key not in f"{WHO} {WHO!r}"


def test_signing_is_cheap():
    """Far below what a part costs; botocore needs about a millisecond."""
    headers = {
        "host": HOST,
        "x-amz-content-sha256": UNSIGNED,
        "x-amz-checksum-crc32": "AAAAAA==",
    }
    signer, who = Signer("us-east-1"), WHO._replace(token="t" * 800)
    path, query = (
        encoded("/some/prefix/models/org/model/file.safetensors"),
        "partNumber=7&uploadId=x",
    )
    begun = time.process_time()
    for _ in range(1000):
        signer.sign(who, "PUT", path, query, headers)
    cost = (time.process_time() - begun) / 1000
    print(f"{cost * 1e6:.0f} us")
    assert cost < 500e-6


def test_a_query_is_ordered_by_names():
    """Not by what stands between name and value: "-" is less than "="."""
    assert canonical_query("a-b=1&a=2&a=1") == "a=1&a=2&a-b=1"


def test_the_published_example_of_a_presigned_url():
    """ "Authenticating Requests: Using Query Parameters" in the S3 reference."""
    query = Signer("us-east-1").signed_query(
        WHO, "/test.txt", HOST, 86400, moment="20130524T000000Z"
    )
    assert dict(parse_qsl(query)) == {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": "AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request",
        "X-Amz-Date": "20130524T000000Z",
        "X-Amz-Expires": "86400",
        "X-Amz-SignedHeaders": "host",
        "X-Amz-Signature": "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404",
    }


@pytest.mark.parametrize("key", ODD_KEYS)
def test_presigned_urls_are_botocores_own(key):
    """For odd keys, and with a session token."""
    pytest.importorskip("botocore")
    from botocore.auth import S3SigV4QueryAuth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import ReadOnlyCredentials

    moment = "20130524T000000Z"
    who = Credentials(WHO.key, WHO.secret, "to/ken+=")
    path = f"/{encoded(key)}"
    ours = Signer("us-east-1").signed_query(who, path, HOST, 60, moment=moment)
    request = AWSRequest("GET", f"https://{HOST}{path}")
    request.context["timestamp"] = moment
    auth = S3SigV4QueryAuth(ReadOnlyCredentials(*who), "s3", "us-east-1", expires=60)
    fields = {**dict(parse_qsl(ours)), "X-Amz-Signature": ""}
    request.params = {n: v for n, v in fields.items() if n != "X-Amz-Signature"}
    canonical = auth.canonical_request(auth_request(request))
    text = auth.string_to_sign(auth_request(request), canonical)
    assert dict(parse_qsl(ours))["X-Amz-Signature"] == auth.signature(text, request)


def auth_request(request):
    """`request` with the one header that is signed."""
    request.headers["host"] = HOST
    return request
