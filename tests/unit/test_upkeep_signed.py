"""Where keys are trusted, a repair signs what it writes, and vouches for nothing of a stranger's."""

from __future__ import annotations

import base64
import json

import pytest

pytest.importorskip("cryptography")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mm_core.exceptions import ConfigError, IntegrityError
from mm_core.registry import Keys, ModelRegistry
from mm_core.registry.layout import log_key
from mm_core.registry.signing import Trust
from mm_core.testing.registry import claimed, manifest_for
from mm_core.upkeep.backup import backup, restore
from mm_core.upkeep.check import check
from mm_core.upkeep.migrate import migrate
from mm_core.upkeep.repair import repair
from mm_plugins.sinks.memory import MemorySink

pytestmark = pytest.mark.unit


@pytest.fixture
def keys(tmp_path) -> Keys:
    """A key that is trusted, and signs."""
    private = Ed25519PrivateKey.generate()
    file = tmp_path / "key.pem"
    file.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = base64.b64encode(private.public_key().public_bytes_raw()).decode()
    return Keys(signing_key=str(file), trusted_keys=(public,))


@pytest.fixture
def sink(tmp_path, keys):
    """A signed registry of 34 commits, with a signed checkpoint at 32."""
    sink = MemorySink(MemorySink.Config(root=f"memory:/{tmp_path}"))
    grow(sink, range(17), keys)
    return sink


def grow(sink, numbers, keys=None) -> None:
    registry = ModelRegistry(sink, keys=keys)
    for number in numbers:
        claim = claimed(registry, f"m{number}", "1")
        sink.write(f"{claim.prefix}model.bin", [b"hello"], size=5)
        registry.add(claim, manifest_for(claim))


def objects_of(sink) -> dict[str, bytes]:
    return {found.key: b"".join(sink.read(found.key)) for found in sink.list("")}


def test_what_a_repair_writes_is_believed(sink, keys):
    """After damage in the middle and at the end, who trusts the key reads on and writes on."""
    sink.put(log_key(7), b"x")
    sink.put(log_key(34), b"x")
    done = repair(sink, trust=Trust(keys))
    assert {step.action for step in done.steps} >= {"stand_in", "fence"}
    assert check(sink, trust=Trust(keys)).ok
    registry = ModelRegistry(sink, keys=keys)
    assert len(registry.list_models()) == 17
    registry.set_alias("m1", "new", "1")


def test_what_no_signature_is_on_is_not_added_again(sink, keys):
    """A version whose commit is lost is named, and stays away: its manifest may be anybody's."""
    sink.put(log_key(34), b"x")
    done = repair(sink, trust=Trust(keys))
    assert [left.key for left in done.left] == ["models/m16/1"]
    assert ModelRegistry(sink, keys=keys).get_model("m16").status.value != "AVAILABLE"
    manifest = ModelRegistry(sink, keys=keys).get_model("m1").manifest
    sink.put(f".mm/manifests/{manifest}.json", b"x")
    done = repair(sink, trust=Trust(keys))
    assert f".mm/manifests/{manifest}.json" in {left.key for left in done.left}


def test_a_repair_needs_a_key_where_keys_are_trusted(sink, keys):
    """Without one it would write what nobody believes."""
    sink.put(log_key(7), b"x")
    before = objects_of(sink)
    with pytest.raises(ConfigError):
        repair(sink, trust=Trust(Keys(trusted_keys=keys.trusted_keys)))
    assert objects_of(sink) == before


@pytest.mark.parametrize("damage", [".mm/hint.json", log_key(3)])
def test_a_repair_does_not_vouch_for_a_stranger(sink, keys, damage):
    """A commit that nobody trusted has signed does not get into a signed checkpoint."""
    grow(sink, [99])
    sink.put(damage, b"x")
    before = objects_of(sink)
    with pytest.raises(IntegrityError, match="not to be believed"):
        repair(sink, trust=Trust(keys))
    assert objects_of(sink) == before


def test_a_strangers_checkpoint_tells_nothing(sink, keys):
    """One that is not signed is no witness, whatever its hash; what is signed still leads there."""
    other = MemorySink(MemorySink.Config(root="memory://strangers"))
    other.delete([found.key for found in list(other.list(""))])
    grow(other, range(40, 57))
    for key, data in objects_of(other).items():
        if key.startswith(".mm/snap/"):
            sink.put(key, data)
    sink.put(log_key(5), b"x")
    repair(sink, trust=Trust(keys))
    assert {entry.model_id for entry in ModelRegistry(sink, keys=keys).list_models()} == {
        f"m{number}" for number in range(17)
    }


def test_a_backup_that_nobody_signed_is_not_restored(sink, keys, tmp_path):
    """What is restored is vouched for by a signed checkpoint: so it must be believed before."""
    other = MemorySink(MemorySink.Config(root=f"memory:/{tmp_path}-other"))
    backup(sink, tmp_path / "signed")
    grow(sink, [99])
    backup(sink, tmp_path / "unsigned")
    with pytest.raises(IntegrityError, match="not to be believed"):
        restore(other, tmp_path / "unsigned", trust=Trust(keys))
    assert objects_of(other) == {}
    restore(other, tmp_path / "signed", trust=Trust(keys))
    assert len(ModelRegistry(other, keys=keys).list_models()) == 17


def test_what_is_migrated_is_signed(sink, keys, tmp_path):
    """Or else nobody who trusts keys could read the registry any more."""
    file = tmp_path / "models.json"
    file.write_text('{"old": {"path": "/models/old"}}')
    migrate(sink, file, trust=Trust(keys))
    assert ModelRegistry(sink, keys=keys).resolve("old").version == "1"


def test_the_commands_sign_what_they_write(sink, keys, tmp_path, monkeypatch):
    """`mm registry migrate` goes by the settings."""
    from click.testing import CliRunner

    from mm_core.cli import app

    (tmp_path / "models.json").write_text('{"old": {"path": "/models/old"}}')
    settings = {
        "version": 1,
        "backends": {"lake": {"type": "local", "root": str(tmp_path / "lake")}},
        "registry": {"signing_key": keys.signing_key, "trusted_keys": list(keys.trusted_keys)},
    }
    (tmp_path / "mm.yaml").write_text(json.dumps(settings))
    monkeypatch.chdir(tmp_path)
    for words in (["registry", "migrate", "models.json"], ["list"]):
        done = CliRunner().invoke(app.make_app(), words, catch_exceptions=False)
        assert done.exit_code == 0


def test_check_says_what_is_not_believed(sink, keys, tmp_path):
    """A whole registry that nobody trusted has signed is a finding, and only for who trusts keys."""
    grow(sink, [99])
    assert check(sink).ok
    found = check(sink, trust=Trust(keys)).problems
    assert [finding.code for finding in found] == ["untrusted"]
