"""What only S3 can show: no upload is left open."""

from __future__ import annotations

import pytest

from mm_plugins.sinks.s3 import S3Sink

pytestmark = pytest.mark.integration


def test_an_aborted_upload_leaves_no_parts(s3):
    """After a failure in mid-upload there is no open upload that costs money."""
    import botocore.session

    def failing():
        yield b"x" * 40_000_000
        raise RuntimeError

    with pytest.raises(RuntimeError):
        S3Sink(S3Sink.Config(root=s3)).write("f", failing(), size=None)
    client = botocore.session.get_session().create_client("s3")
    uploads = client.list_multipart_uploads(Bucket=s3.split("/")[2])
    assert "Uploads" not in uploads
