"""The sinks on real servers keep the contract."""

from __future__ import annotations

import uuid

import pytest

from mm_core.testing.s3 import MinistackServer
from mm_core.testing.sinks import ODD_KEYS, SinkTests
from mm_plugins.sinks.fsspec import FsspecSink
from mm_plugins.sinks.gcs import GcsSink
from mm_plugins.sinks.s3 import S3Sink

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def ministack():
    with MinistackServer() as server:
        yield server


class TestS3(SinkTests):
    @pytest.fixture
    def sink(self, s3):
        return S3Sink(S3Sink.Config(root=s3))

    @pytest.fixture
    def other(self, sink):
        return S3Sink(S3Sink.Config(root=sink.root))


@pytest.mark.slow
class TestS3OnAnotherServer(SinkTests):
    """ministack compares checksums, where moto takes any."""

    many_keys = 1100

    @pytest.fixture
    def sink(self, ministack, monkeypatch):
        for name, value in ministack.environment.items():
            monkeypatch.setenv(name, value)
        bucket = f"test-{uuid.uuid4().hex[:12]}"
        ministack.make_bucket(bucket)
        return S3Sink(S3Sink.Config(root=f"s3://{bucket}/some/prefix"))

    @pytest.fixture
    def other(self, sink):
        return S3Sink(S3Sink.Config(root=sink.root))


class TestGcs(SinkTests):
    @pytest.fixture
    def sink(self, gcs):
        return GcsSink(GcsSink.Config(root=gcs))

    @pytest.fixture
    def other(self, sink):
        return GcsSink(GcsSink.Config(root=sink.root))


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
