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


def modules_after(command: str, cwd) -> set[str]:
    """All modules, by their full names, that a fresh interpreter holds after a command of `mm`."""
    code = "import sys; from mm_core.cli import main; assert main(sys.argv[1:]) == 0; "
    code += "print(*sys.modules, file=sys.stderr)"
    run = subprocess.run(
        [sys.executable, "-c", code, command],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=cwd,
    )
    return set(run.stderr.split())


def test_a_warm_list_loads_no_library(tmp_path):
    """The second `mm list` of a local backend validates nothing, scans nothing, starts nothing."""
    from mm_core import ModelEntry, ModelRegistry
    from mm_plugins.sinks.local import LocalSink

    (tmp_path / "mm.yaml").write_text("backends: {here: {type: local, root: ./store}}")
    registry = ModelRegistry(LocalSink(LocalSink.Config(root=str(tmp_path / "store"))))
    registry.add_model(ModelEntry(model_id="m", version="1", path="/x"))
    assert "pydantic" in modules_after("list", tmp_path)
    loaded = modules_after("list", tmp_path)
    assert "mm_plugins.sinks.local" in loaded
    heavy = HEAVY | {"pydantic", "asyncio", "dotenv", "platformdirs", "ssl", "socket"}
    heavy |= {"importlib.metadata", "urllib.request", "concurrent.futures", "multiprocessing"}
    heavy |= {"mm_core.manager", "mm_core.transfer", "mm_core.plugins", "mm_core.config.settings"}
    heavy |= {"mm_core.redaction", "mm_plugins.sinks._local_upload"}
    assert not loaded & heavy


@pytest.mark.parametrize("module", PLUGINS)
def test_a_plugin_module_loads_no_vendor_library(module):
    """All plugins are imported to be looked up, so each must be cheap alone."""
    assert not loaded_by("-c", f"import mm_plugins.{module}") & HEAVY


def test_every_name_of_the_face_is_there():
    """What `mm_core` promises can be imported, and type checkers see the same names."""
    import ast
    import builtins
    from pathlib import Path

    import mm_core

    for name in dir(mm_core):
        assert getattr(mm_core, name) is not None
    tree = ast.parse(Path(mm_core.__file__).read_text())
    blocks = [n for n in tree.body if isinstance(n, ast.If)]
    seen = {alias.asname for block in blocks for n in block.body for alias in n.names}
    assert seen == set(dir(mm_core)) - {"__version__"}
    # A star import hides no name of Python's own.
    assert set(dir(mm_core)) - set(mm_core.__all__) == seen & set(dir(builtins)) == {"open"}
    with pytest.raises(AttributeError, match="nothing_like_that"):
        mm_core.nothing_like_that  # noqa: B018
