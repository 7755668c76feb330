"""The page of the hub in a real Chromium: what a person does, and what a screen reader would hear.

Needs ``chromium`` (MM_CHROMIUM names another), node, and a folder with playwright-core
and axe-core, which MM_BROWSER_MODULES names: `nox -s tests` sees to it. With
MM_SCREENSHOTS naming a folder, pictures of the page are put there.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mm_core import ModelManager
from mm_plugins.hub.tokens import TokenBook

pytestmark = [pytest.mark.integration, pytest.mark.slow]

CARD = b"""---
license: mit
---
# A small model

It is **made for tests**. See [its home](https://example.invalid/model).

![a picture](https://example.invalid/picture.png)

```python
print("hello")
```

| Task | Score |
|------|-------|
| one  | 0.91  |
"""
CHROMIUM = os.environ.get("MM_CHROMIUM") or shutil.which("chromium")
PICTURES = os.environ.get("MM_SCREENSHOTS")
MODULES = os.environ.get("MM_BROWSER_MODULES", "")


def weights(numbers: int) -> bytes:
    """A file of weights, all of them 0."""
    tensor = {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}
    header = json.dumps({"encoder.weight": tensor}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4 * numbers)


@pytest.fixture(scope="module")
def modules() -> Path:
    """Where playwright-core and axe-core are."""
    missing = [name for name in ("node",) if shutil.which(name) is None]
    if CHROMIUM is None:
        missing.append("chromium")
    folder = Path(MODULES)
    if not (MODULES and (folder / "node_modules" / "playwright-core").is_dir()):
        missing.append("MM_BROWSER_MODULES with playwright-core and axe-core")
    if missing:
        pytest.skip(f"no browser to test in: {', '.join(missing)}")
    return folder


@pytest.fixture
def seen(modules, tmp_path, hub, store, hub_of):
    """What came of all that a person did."""
    files = {"README.md": CARD, "config.json": b"{}", "model.safetensors": weights(20_000)}
    hub.add_repo("acme/encoder", files, license="apache-2.0", pipeline_tag="feature-extraction")
    hub.add_repo("acme/licensed", {"README.md": CARD}, license="mit", pipeline_tag="fill-mask")
    with ModelManager(backend=store) as manager:
        manager.pull("hf://acme/licensed")
        manager.pull("hf://acme/encoder", version="v1", aliases=["stable"])
        files["model.safetensors"] = weights(30_000)
        hub.add_repo("acme/encoder", files)
        manager.pull("hf://acme/encoder", version="v2", aliases=["main"])
        token, _ = TokenBook(manager.sink()).create("ann", scope="admin")
    large = {**files, "model.safetensors": weights(2_250_000)}
    hub.add_repo("acme/chat", large, license="apache-2.0", pipeline_tag="text-generation")
    if PICTURES:
        Path(PICTURES).mkdir(parents=True, exist_ok=True)
    environ = {"HF_ENDPOINT": hub.endpoint, "MM_DEFAULTS__LIMIT_RATE": "2MiB"}
    with hub_of("{refresh: 0}", **environ) as served:
        asked = {
            "url": served.url,
            "token": token,
            "model": "acme/encoder",
            "models": 3,
            "source": "hf://acme/chat",
            "modules": str(modules.absolute()),
            "chromium": CHROMIUM,
            "pictures": PICTURES and str(Path(PICTURES).absolute()),
        }
        run = subprocess.run(
            ["node", Path(__file__).with_name("browsing.mjs")],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert run.returncode == 0, run.stderr[-5000:]
        found = json.loads(run.stdout)
        found["own"] = urlsplit(served.url).netloc
        assert not found.get("failed"), found["failed"]
        yield found


def test_what_a_person_does(seen):
    """One browser, from the first look to signing out; nothing of it goes to another host."""
    steps = seen["steps"]
    assert steps["search"]["found"] == ["acme/encoder"]
    assert "search=encoder" in steps["search"]["url"]
    assert steps["search"]["licensed"] == ["acme/licensed"]
    assert steps["keyboard"]["skip"] == "Skip to the content"
    assert (steps["keyboard"]["main"], steps["keyboard"]["first"]) == ("main", "search")
    assert steps["keyboard"]["outline"] == "solid"
    assert "from_pretrained" in steps["model"]["copied"]
    assert "made for tests" in steps["model"]["card"]
    assert steps["model"]["images"] == 0
    assert steps["refused"] == {"answer": 401, "forms": 0}
    assert "Invalid credentials" in steps["signIn"]["wrong"]
    assert steps["signIn"]["path"] == "/mm/ui/models/acme/encoder"
    assert steps["signIn"]["cookie"] == ["mm_token", True, "Strict"]
    assert steps["signIn"]["read"] == ""
    assert steps["alias"]["url"].endswith("?version=v1")
    values = steps["pull"]["values"]
    assert values == sorted(values)
    assert len(set(values)) > 3
    assert steps["pull"]["same"] is True
    assert steps["pull"]["at"] == "/mm/ui/models/acme/chat"
    assert steps["remove"]["versions"] == 1
    assert steps["phone"]["wide"] == []
    assert steps["dark"]["back"] == "rgb(21, 23, 26)"
    assert steps["signOut"]["cookies"] == 0
    assert seen["hosts"] == [seen["own"]]
    assert seen["errors"] == []
    assert {name: found for name, found in seen["axe"].items() if found} == {}
    assert len(seen["axe"]) >= 11
