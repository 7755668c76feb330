"""The sinks on real servers keep the contract."""

from __future__ import annotations

import uuid

import pytest

from mm_core.testing.s3 import MinistackServer
from mm_core.testing.sinks import ODD_KEYS, ResumableSinkTests, SinkTests
from mm_plugins.sinks.fsspec import FsspecSink
from mm_plugins.sinks.gcs import GcsSink
from mm_plugins.sinks.s3 import S3Sink

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def ministack():
    with MinistackServer() as server:
        yield server


class S3SinkTests(ResumableSinkTests):
    """S3 records no identity of an upload: readers-back find out."""

    identifies = False
    transfer = "auto"

    @pytest.fixture
    def bucket(self, s3):
        """A root on some server."""
        return s3

    @pytest.fixture
    def sink(self, bucket):
        return self.open(bucket)

    @pytest.fixture
    def other(self, sink):
        return self.open(sink.root)

    @pytest.fixture
    def neighbour(self, bucket):
        return self.open(f"{bucket}-beside")

    def open(self, root):
        return S3Sink(S3Sink.Config(root=root, transfer=self.transfer))


class TestS3(S3SinkTests):
    pass


@pytest.mark.slow
class TestS3BytesByS3fs(S3SinkTests):
    transfer = "fsspec"


@pytest.mark.slow
class TestS3OnAnotherServer(S3SinkTests):
    """ministack compares checksums, where moto takes any."""

    many_keys = 1100

    @pytest.fixture
    def bucket(self, ministack, monkeypatch):
        for name, value in ministack.environment.items():
            monkeypatch.setenv(name, value)
        bucket = f"test-{uuid.uuid4().hex[:12]}"
        ministack.make_bucket(bucket)
        return f"s3://{bucket}/some/prefix"


class TestGcs(SinkTests):
    transfer = "auto"

    @pytest.fixture
    def sink(self, gcs):
        return GcsSink(GcsSink.Config(root=gcs, transfer=self.transfer))

    @pytest.fixture
    def other(self, sink):
        return GcsSink(sink.config)

    @pytest.fixture
    def neighbour(self, gcs):
        return GcsSink(GcsSink.Config(root=f"{gcs}-beside", transfer=self.transfer))


@pytest.mark.slow
class TestGcsBytesByGcsfs(TestGcs):
    transfer = "fsspec"


# s3fs takes what follows ?versionId= for a version; the sink refuses such a key.
FSSPEC_KEYS = tuple(key for key in ODD_KEYS if "?versionId=" not in key)


class TestFsspecFile(SinkTests):
    creates = False
    odd_keys = FSSPEC_KEYS

    @pytest.fixture
    def sink(self, tmp_path):
        return FsspecSink(FsspecSink.Config(root=f"file://{tmp_path}/store"))

    @pytest.fixture
    def other(self, sink):
        return FsspecSink(FsspecSink.Config(root=sink.root))


@pytest.mark.slow
class TestFsspecS3(SinkTests):
    odd_keys = FSSPEC_KEYS

    @pytest.fixture
    def sink(self, s3):
        return FsspecSink(FsspecSink.Config(root=s3))

    @pytest.fixture
    def other(self, sink):
        return FsspecSink(FsspecSink.Config(root=sink.root))
