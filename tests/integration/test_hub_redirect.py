"""Large files by an address of the store's: clients are sent there, and get nothing else from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from urllib.parse import parse_qsl, urlsplit

import pytest
from serving import FILES, MODEL, push, serving

from mm_core.testing.proxy import FaultProxy
from mm_plugins.sinks.gcs import GcsSink
from mm_plugins.sinks.s3 import S3Sink

pytestmark = pytest.mark.integration

CONFIG = "{bytes: redirect, redirect_for: 2h}"
PATH = f"/{MODEL}/resolve/main/big.bin"


def fetched(url: str, **headers) -> tuple[int, bytes]:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
        return answer.status, answer.read()


def test_a_client_is_sent_to_the_bucket(tmp_path, s3):
    """For large files, and with the heads of the hub; ranges work there, for as long as was said."""
    push(tmp_path, s3)
    with serving(tmp_path / "hub", s3, config=CONFIG) as served:
        status, head, body = served.ask("GET", PATH)
        assert (status, body, head["cache-control"]) == (302, b"", "no-store")
        proxied = served.ask("HEAD", PATH)
        assert proxied[0] == 200
        for name in ("etag", "x-linked-etag", "x-linked-size", "x-repo-commit"):
            assert head[name] == proxied[1][name]
        url = head["location"]
        assert dict(parse_qsl(urlsplit(url).query))["X-Amz-Expires"] == "7200"
        assert fetched(url) == (200, FILES["big.bin"])
        assert fetched(url, Range="bytes=5-9") == (206, FILES["big.bin"][5:10])
        assert served.ask("GET", f"/{MODEL}/resolve/main/config.json")[0] == 200
        assert "X-Amz-Signature" not in served.log_file.read_text()


def test_the_hubs_client_follows(tmp_path, s3):
    """All of the model, with the right bytes; its token goes to the hub alone."""
    push(tmp_path, s3)
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        config = "{bytes: redirect, anonymous_read: false}"
        with serving(
            tmp_path / "hub", s3, config=config, AWS_ENDPOINT_URL=proxy.endpoint_url
        ) as served:
            made = subprocess.run(
                [sys.executable, "-m", "mm_core", "token", "create", "x", "--json"],
                cwd=served.folder,
                capture_output=True,
                text=True,
                check=True,
            )
            token = json.loads(made.stdout)["token"]["text"]
            script = f"from huggingface_hub import snapshot_download as s; print(s({MODEL!r}))"
            run = subprocess.run(
                [sys.executable, "-c", script],
                env={
                    **os.environ,
                    "HF_ENDPOINT": served.url,
                    "HF_HOME": str(tmp_path / "cache"),
                    "HF_TOKEN": token,
                },
                capture_output=True,
                text=True,
                check=False,
            )
            assert run.returncode == 0, run.stderr
            for path, data in FILES.items():
                with open(os.path.join(run.stdout.strip(), path), "rb") as file:
                    assert file.read() == data
            sent = [line for line in served.log() if line.get("route") == "resolve"]
            assert any(line["event"].endswith("big.bin 302") for line in sent)
            assert sum(line["bytes"] for line in sent) < 1 << 20


def test_where_nobody_signs_bytes_pass_through(tmp_path, local, gcs):
    """A disk, and a bucket without credentials."""
    for number, backend in enumerate((local, gcs)):
        push(tmp_path, backend)
        with serving(tmp_path / f"hub{number}", backend, config=CONFIG) as served:
            status, _, body = served.ask("GET", PATH)
            assert (status, body == FILES["big.bin"]) == (200, True)


@pytest.mark.parametrize(
    "options",
    [{"anon": True}, {"s3_additional_kwargs": {"SSECustomerAlgorithm": "AES256",
                                               "SSECustomerKey": "k" * 32}}],
)  # fmt: skip
def test_s3_signs_nothing_that_would_not_work(s3, options):
    """Without credentials, or where a reader would have to send a key."""
    assert S3Sink(S3Sink.Config(root=s3, options=options)).signed_url("x", seconds=60) is None


def test_gcs_signs_with_the_key_of_a_service_account(tmp_path, gcs_root, gcs_server):
    """By Google's own library, in its fourth version; the server takes it."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    account = {
        "type": "service_account",
        "project_id": "p",
        "private_key_id": "1",
        "private_key": key.decode(),
        "client_email": "signer@p.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": "https://oauth2.googleapis.com/token",
    }
    file = tmp_path / "account.json"
    file.write_text(json.dumps(account))
    sink = GcsSink(GcsSink.Config(root=gcs_root, options={"token": str(file)}))
    url = sink.signed_url("models/a b/x.bin", seconds=90)
    query = dict(parse_qsl(urlsplit(url).query))
    assert query["X-Goog-Algorithm"] == "GOOG4-RSA-SHA256"
    assert query["X-Goog-Expires"] == "90"
    assert query["X-Goog-Credential"].startswith("signer@p.iam.gserviceaccount.com/")
    assert urlsplit(url).path.endswith("/some/prefix/models/a%20b/x.bin")
    anybody = GcsSink(GcsSink.Config(root=gcs_root))
    assert anybody.signed_url("x", seconds=90) is None


def test_nobody_is_asked_whether_there_is_an_object(s3):
    """The store says so to whoever uses the address."""
    sink = S3Sink(S3Sink.Config(root=s3))
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetched(sink.signed_url("none", seconds=60))
    assert refused.value.code == 404
