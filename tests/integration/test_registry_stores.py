"""The registry's conformance suite on S3 and on GCS."""

import pytest

from mm_core.plugins import Plugins
from mm_core.testing.registry import RegistryTests

pytestmark = pytest.mark.integration


def open_store(root):
    sink_type = Plugins.discover().sink_for(root)
    return sink_type(sink_type.Config(root=root))


class TestS3(RegistryTests):
    @pytest.fixture
    def sink(self, s3):
        return open_store(s3)


class TestGcs(RegistryTests):
    @pytest.fixture
    def sink(self, gcs):
        return open_store(gcs)
