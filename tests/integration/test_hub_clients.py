"""Clients of the Hub, unmodified, load from one's own storage: by nothing but ``HF_ENDPOINT``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest
from serving import recording_proxy, serving

from mm_core import Manifest, ModelManager, ModelType, StoredFile
from mm_core.cli.tiny_model import tiny_model
from mm_core.testing.material import noise

pytestmark = [pytest.mark.integration, pytest.mark.slow]

CLIENT = Path(__file__).with_name("hub_client.py")
MATRIX = Path(__file__).parents[2] / "docs" / "serve-clients.md"
MODEL = "org/tiny"
SIZE = 51 * 10**9


def fill(hub, backend: str) -> None:
    """Two versions of one model from a hub, and some that come from nowhere else."""
    files = {
        **tiny_model(),
        "deep/er/notes.txt": b"deep\n",
        "big.bin": noise(12_000_001),
    }
    facts = {"pipeline_tag": "feature-extraction", "license": "mit"}
    with ModelManager(backend=backend) as manager:
        hub.add_repo(MODEL, files={**files, "config.json": b'{"model_type": "old"}'}, **facts)
        manager.pull(f"hf://{MODEL}", aliases=["old"])
        hub.add_repo(MODEL, files=files, **facts)
        manager.pull(f"hf://{MODEL}")
        for number in range(7):
            hub.add_repo(f"up/more-{number}", files={"config.json": b"{}"})
            manager.pull(f"hf://up/more-{number}", model_id=f"org/more-{number}")


def ask(python: Path | str, url: str, cache: Path, **variables) -> dict:
    """What `hub_client.py` says of a hub, run by any Python."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("HF_", "HUGGING", "PYTEST"))
    }
    environment |= {
        "HF_ENDPOINT": url,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",  # the command `hf` asks PyPI for newer ones of itself
        **variables,
    }
    run = subprocess.run(
        [str(python), str(CLIENT)], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def failures(told: dict) -> dict:
    return {
        name: how for name, how in told["results"].items() if how not in ("ok", "not installed")
    }


def test_the_installed_client_over_each_backend(hub, backend, tmp_path):
    """Everything that it does to read, on local disk, S3 and GCS."""
    fill(hub, backend)
    with serving(tmp_path / "hub", backend) as served:
        told = ask(sys.executable, served.url, tmp_path / "home")
        assert failures(told) == {}
        assert not [line for line in served.log() if line.get("level") == "error"]


def test_no_request_leaves_for_another_host(hub, local, tmp_path):
    """As a proxy sees it, through which the client must go."""
    fill(hub, local)
    with serving(tmp_path / "hub", local) as served, recording_proxy() as proxy:
        told = ask(
            sys.executable,
            served.url,
            tmp_path / "home",
            http_proxy=proxy.url,
            https_proxy=proxy.url,
            HTTP_PROXY=proxy.url,
            HTTPS_PROXY=proxy.url,
            no_proxy="",
            NO_PROXY="",
        )
        assert failures(told) == {}
        assert proxy.hosts == {served.url.removeprefix("http://")}


@pytest.mark.skipif("MM_LOADERS" not in os.environ, reason="installs clients: nox -s loaders")
@pytest.mark.parametrize(
    "client",
    ["huggingface_hub==1.31.*", "huggingface_hub==1.33.*", "huggingface_hub", "transformers torch"],
)
def test_each_client(hub, local, tmp_path, client):
    """The oldest that is supported, the one that most have, and the newest."""
    fill(hub, local)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "-q", *client.split()], check=True)
    with serving(tmp_path / "hub", local) as served:
        told = ask(python, served.url, tmp_path / "home")
    assert failures(told) == {}


def test_the_matrix_in_the_docs_is_of_these_checks():
    """Each check that clients are put to is a row of docs/serve-clients.md, and no other is."""
    reading = MATRIX.read_text().partition("<!-- end -->")[0]
    rows = re.findall(r"^\| `(\w+)` \|", reading, re.MULTILINE)
    assert sorted(rows) == sorted(re.findall(r"^@check\ndef (\w+)", CLIENT.read_text(), re.M))


def test_a_file_of_more_than_50_gb(tmp_path, local):
    """Clients refuse what they hear to be so large; of this one they hear it as it comes."""
    with ModelManager(backend=local) as manager:
        registry = manager.registry()
        claim = registry.begin("org/huge", "v1")
        path = Path(local) / "models/org/huge/v1/w.bin"
        path.parent.mkdir(parents=True)
        path.touch()
        os.truncate(path, SIZE)  # takes no room
        file = StoredFile(path="w.bin", key="models/org/huge/v1/w.bin", size=SIZE, sha256="0" * 64)
        manifest = Manifest(
            model_id="org/huge", version="v1", model_type=ModelType.OTHER, files=(file,)
        )
        registry.add(claim, manifest)
    script = "from huggingface_hub import hf_hub_download as d; d('org/huge', 'w.bin')"
    cache = tmp_path / "cache"
    with serving(tmp_path / "hub", local) as served:
        head = served.ask("HEAD", "/org/huge/resolve/main/w.bin")[1]
        assert "x-linked-size" not in head
        assert served.ask("GET", "/org/huge/resolve/main/w.bin", Range=f"bytes={SIZE - 9}-")[2] == (
            bytes(9)
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, "HF_ENDPOINT": served.url, "HF_HOME": str(cache)},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            deadline = time.monotonic() + 60
            while sum(p.stat().st_size for p in cache.rglob("*.incomplete")) < 100 << 20:
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            process.kill()
            process.communicate()
            for part in cache.rglob("*.incomplete"):
                part.unlink()
