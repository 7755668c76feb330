"""Importing is cheap: libraries are loaded when they are used, and only then."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit

VENDOR = {
    "s3fs", "gcsfs", "fsspec", "huggingface_hub", "hf_xet", "aiohttp", "botocore", "aiobotocore", "google",
    "urllib3", "fastapi", "moto",
}  # fmt: skip
HEAVY = VENDOR | {"rich", "structlog", "yaml", "requests", "httpx"}
PLUGINS = [
    "sources.huggingface", "sources.url", "sources.folder", "sources.fsspec", "sources.registry", "sources.hf_cache",
    "sinks.local", "sinks.s3", "sinks.gcs", "sinks.fsspec", "sinks.memory",
]  # fmt: skip


def loaded_by(*arguments: str) -> set[str]:
    """The top-level packages that a fresh interpreter loads for these arguments."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    lines = [line for line in run.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def test_the_face_costs_nothing():
    """`import mm_core` loads no library at all."""
    assert not loaded_by("-c", "import mm_core") & (HEAVY | {"pydantic", "click", "pluggy"})


def test_help_loads_no_library():
    """`mm --help` loads click, and neither the vendors' libraries nor the terminal's."""
    loaded = loaded_by("-m", "mm_core", "--help")
    assert "click" in loaded
    assert not loaded & (HEAVY | {"pydantic"})


@pytest.mark.parametrize("module", PLUGINS)
def test_a_plugin_module_loads_no_vendor_library(module):
    """All plugins are imported to be looked up, so each must be cheap alone."""
    assert not loaded_by("-c", f"import mm_plugins.{module}") & HEAVY


def test_every_name_of_the_face_is_there():
    """What `mm_core` promises can be imported, and type checkers see the same names."""
    import ast
    from pathlib import Path

    import mm_core

    for name in mm_core.__all__:
        assert getattr(mm_core, name) is not None
    tree = ast.parse(Path(mm_core.__file__).read_text())
    blocks = [n for n in tree.body if isinstance(n, ast.If)]
    seen = {alias.asname for block in blocks for n in block.body for alias in n.names}
    assert seen == set(mm_core.__all__) - {"__version__"}
    with pytest.raises(AttributeError, match="nothing_like_that"):
        mm_core.nothing_like_that  # noqa: B018
