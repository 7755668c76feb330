"""Where requests go, learnt from what botocore would send: only where ours would be the same."""

from __future__ import annotations

import pytest

from mm_plugins.sinks._s3_route import NotUnderstoodError, learn
from mm_plugins.sinks._s3_session import ClientFacts, Prepared
from mm_plugins.sinks._s3_sign import Credentials, Signer, canonical_query, encoded

pytestmark = pytest.mark.unit

WHO = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
FACTS = ClientFacts(
    connect_timeout=10, read_timeout=60, certificates=None, special=False, checksums=True
)
KEY = "some/pre fix/key1f"


def prepared(base, *, query="", host=None, signer=None, who=WHO, **headers) -> Prepared:
    """A request that was signed as botocore does."""
    origin, path = base.split("//")[0], "/" + base.split("//", 1)[1].partition("/")[2]
    host = host or base.split("//")[1].split("/")[0]
    path += encoded(KEY)
    sent = {"x-amz-content-sha256": "UNSIGNED-PAYLOAD", **headers}
    if who is not None:
        signed = (signer or Signer("eu-west-1")).sign(
            who, "PUT", path, canonical_query(query), {"host": host, **sent}
        )
        sent = {name: value for name, value in signed.items() if name != "host"}
    url = f"{origin}//{base.split('//')[1].split('/')[0]}{path}"
    return Prepared(KEY, "PUT", f"{url}?{query}" if query else url, sent)


@pytest.mark.parametrize(
    "base",
    [
        "https://bucket.s3.eu-west-1.amazonaws.com/",
        "https://s3.eu-west-1.amazonaws.com/dotted.bucket/",
        "http://127.0.0.1:9000/bucket/",
        "https://gateway.example/s3/bucket/",
        "https://bucket.s3.dualstack.eu-west-1.amazonaws.com/",
        "https://bucket.s3-accelerate.amazonaws.com/",
        "http://[::1]:9000/bucket/",
    ],
)
def test_virtual_and_path_style_are_botocores_choice(base):
    """The URL of any key is built as botocore built the one of its own."""
    route = learn(prepared(base, query="partNumber=1&uploadId=id"), WHO, FACTS)
    url, headers = route.request(WHO, "ä/b c+d", "partNumber=7&uploadId=x", {})
    assert url == f"{base}%C3%A4/b%20c%2Bd?partNumber=7&uploadId=x"
    assert headers["host"] == base.split("//")[1].split("/")[0]
    assert "/eu-west-1/s3/aws4_request" in headers["authorization"]
    assert route.secure is base.startswith("https")


def test_a_default_port_is_not_part_of_the_host():
    """As HTTP has it, and as botocore signs it."""
    made = prepared("https://minio.example:443/bucket/", host="minio.example")
    _, headers = learn(made, WHO, FACTS).request(WHO, "key", "", {})
    assert headers["host"] == "minio.example"


def test_what_is_set_for_all_requests_is_kept_and_what_is_of_one_is_not():
    """Metadata, encryption, who pays; but no length, digest, checksum, or coding in chunks."""
    given = {
        "x-amz-meta-team": "ml",
        "x-amz-request-payer": "requester",
        "x-amz-storage-class": "GLACIER",
        "content-encoding": "gzip,aws-chunked",
    }
    of_one = {
        "content-md5": "x",
        "x-amz-trailer": "x-amz-checksum-crc32",
        "x-amz-checksum-crc32": "AAAAAA==",
        "x-amz-sdk-checksum-algorithm": "CRC32",
        "x-amz-decoded-content-length": "0",
    }
    made = prepared("https://b.s3.amazonaws.com/", **given, **of_one)
    made = made._replace(headers={**made.headers, "expect": "100-continue", "user-agent": "boto"})
    kept = dict(learn(made, WHO, FACTS).headers)
    assert kept == {"host": "b.s3.amazonaws.com", **given, "content-encoding": "gzip"}


def test_without_credentials_nothing_is_signed():
    """And then no credentials may be there."""
    made = prepared("http://127.0.0.1:9000/bucket/", who=None)
    made = made._replace(headers={})
    _, headers = learn(made, None, FACTS).request(None, "key", "", {})
    assert headers == {"host": "127.0.0.1:9000"}
    with pytest.raises(NotUnderstoodError):
        learn(made, WHO, FACTS)


def signed(value):
    return lambda made: made._replace(headers={**made.headers, "authorization": value})


@pytest.mark.parametrize(
    "change",
    [
        signed("AWS AKIAIOSFODNN7EXAMPLE:signature"),
        signed("AWS4-ECDSA-P256-SHA256 Credential=a/20260101/s3/aws4_request, SignedHeaders=host"),
        signed("AWS4-HMAC-SHA256 nonsense"),
        signed("Bearer token"),
        lambda made: made._replace(headers={**made.headers, "x-amz-date": "20200101T000000Z"}),
        lambda made: made._replace(url=made.url.replace("pre%20fix", "pre+fix")),
        lambda made: made._replace(url=made.url + "/more"),
        lambda made: made._replace(url=made.url + "?session=x"),
        lambda _: prepared(
            "https://b.s3express-use1-az4.amazonaws.com/", signer=Signer("us-east-1", "s3express")
        ),
        lambda _: prepared(
            "https://b.s3-outposts.amazonaws.com/", signer=Signer("us-east-1", "s3-outposts")
        ),
        lambda _: prepared("https://b.s3.amazonaws.com/", who=WHO._replace(secret="another")),
        lambda _: prepared("https://b.s3.amazonaws.com/", who=WHO._replace(token="session")),
    ],
)
def test_what_comes_out_otherwise_is_not_understood(change):
    """Another algorithm, service, credentials, path: whatever makes another signature than ours."""
    made = prepared("https://b.s3.amazonaws.com/")
    learn(made, WHO, FACTS)
    with pytest.raises(NotUnderstoodError):
        learn(change(made), WHO, FACTS)


def test_certificates_and_proxies_of_the_client_are_not_understood():
    """The connections follow the environment, as those to the sources do."""
    made = prepared("https://b.s3.amazonaws.com/")
    for facts in (
        FACTS._replace(certificates="/etc/aws.pem"),
        FACTS._replace(certificates=False),
        FACTS._replace(special=True),
    ):
        with pytest.raises(NotUnderstoodError):
            learn(made, WHO, facts)
    plain = prepared("http://127.0.0.1:9000/bucket/")
    learn(plain, WHO, FACTS._replace(certificates="/etc/aws.pem"))
