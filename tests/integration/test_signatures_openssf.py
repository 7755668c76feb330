"""Signatures both ways between Model Manager and the OpenSSF's own program, and bills of materials."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

import pytest

from mm_core import ModelManager, SignatureError
from mm_core.testing.signing import Certified, Person

pytestmark = pytest.mark.integration

pytest.importorskip("model_signing", reason="model-signing is not installed")

FILES = {
    "config.json": b'{"model_type": "bert"}',
    "sub/model.bin": b"w" * 1000,
    ".gitattributes": b"x",
}


def official(*words) -> subprocess.CompletedProcess:
    """The program, which needs no network for keys and certificates."""
    command = [sys.executable, "-m", "model_signing", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def folder(tmp_path):
    for path, data in FILES.items():
        (tmp_path / "model" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / path).write_bytes(data)
    return tmp_path / "model"


@pytest.fixture
def manager(tmp_path, folder):
    with ModelManager(backend=str(tmp_path / "store")) as manager:
        manager.push(folder, "org/m", version="1")
        yield manager


@dataclass
class Keys:
    """What to sign with, and what each side has to be told to believe it."""

    mode: str
    ours: dict
    trust: dict
    official_key: tuple
    official_trust: tuple


@pytest.fixture(params=["key", "certificate"])
def keys(request, tmp_path):
    if request.param == "key":
        one = Person(tmp_path, "alice")
        return Keys(
            mode="key",
            ours={"key": one.key},
            trust={"public_keys": [one.public]},
            official_key=("--private_key", one.key),
            official_trust=("--public_key", one.public),
        )
    root = Certified(tmp_path, "root", authority=True)
    one = Certified(tmp_path, "alice", issuer=root)
    trusted = ("--certificate_chain", root.certificate)
    return Keys(
        mode="certificate",
        ours={"key": one.key, "certificate": one.certificate},
        trust={"certificate_roots": [root.certificate]},
        official_key=("--private_key", one.key, "--signing_certificate", one.certificate, *trusted),
        official_trust=trusted,
    )


def test_the_official_program_believes_what_we_signed(manager, keys, tmp_path):
    """`mm get -o` puts the bundle where it looks; a changed byte is found."""
    manager.sign("org/m", **keys.ours)
    out = tmp_path / "out"
    manager.get("org/m", output=out)
    verify = ("verify", keys.mode, out, "--signature", out / "model.sig", *keys.official_trust)
    done = official(*verify)
    assert done.returncode == 0, done.stdout + done.stderr
    (out / "sub/model.bin").write_bytes(b"v" * 1000)
    assert official(*verify).returncode != 0


def test_we_believe_what_the_official_program_signed(manager, folder, keys, tmp_path):
    """Kept beside the version; a bundle over other bytes is refused."""
    bundle = tmp_path / "theirs.sig"
    done = official("sign", keys.mode, folder, *keys.official_key, "--signature", bundle)
    assert done.returncode == 0, done.stdout + done.stderr
    manager.attach_signature("org/m", bundle.read_bytes())
    (signed,) = manager.verify_signatures("org/m", **keys.trust)
    assert signed.ok
    (folder / "sub/model.bin").write_bytes(b"v" * 1000)
    manager.push(folder, "org/other", version="1")
    with pytest.raises(SignatureError):
        manager.attach_signature("org/other", bundle.read_bytes())


def test_a_bill_of_materials_is_what_cyclonedx_says_it_is(manager, folder, keys):
    """Valid against the schema of 1.6, with every file and its hash; the same again is the same."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    header = json.dumps({"w": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}}).encode()
    (folder / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + bytes(12)
    )
    manager.push(folder, "org/full", version="1", aliases=["prod"])
    manager.sign("org/full", **keys.ours)
    document = manager.sbom("org/full")
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document))
    assert problem is None, problem
    hashes = {one["name"]: one["hashes"][0]["content"] for one in document["components"]}
    assert hashes == {file.path: file.sha256 for file in manager.show("org/full").manifest.files}
    told = json.dumps(document)
    properties = document["metadata"]["component"]["modelCard"]["properties"]
    assert {p["value"] for p in properties if p["name"].endswith("parameters")} == {"6"}
    assert "F16" in told
    assert manager.sbom("org/full") == document


def test_the_validator_can_fail(manager):
    """So that the test above means something."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    document = manager.sbom("org/m")
    document["metadata"]["component"]["type"] = "no such type"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is not None
