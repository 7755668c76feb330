"""Signatures: whoever trusts some keys believes nothing that none of them signed."""

import base64
import gzip
import json
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from mm_core import ModelManager, load_settings
from mm_core.exceptions import ConfigError, IntegrityError, MissingExtraError
from mm_core.registry import Keys, ModelRegistry
from mm_core.registry.seal import seal
from mm_core.schemas import canonical_json, sha256_hex
from mm_core.sink import read_bytes
from mm_core.testing.registry import registered
from mm_core.upkeep.repair import repair
from mm_plugins.sinks.memory import MemorySink

pytestmark = pytest.mark.unit


@pytest.fixture
def sink(tmp_path):
    return MemorySink(MemorySink.Config(root=f"memory:/{tmp_path}"))


class Person:
    """Somebody with a pair of keys in files."""

    def __init__(self, folder, name):
        self.private = Ed25519PrivateKey.generate()
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(pem(self.private))
        public = self.private.public_key()
        self.text = base64.b64encode(public.public_bytes_raw()).decode()
        self.public_file = folder / f"{name}.pub"
        self.public_file.write_bytes(
            public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )

    def keys(self, *trusted):
        return Keys(signing_key=str(self.file), trusted_keys=tuple(one.text for one in trusted))


def pem(private, encryption=None):
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


@pytest.fixture
def alice(tmp_path):
    return Person(tmp_path, "alice")


@pytest.fixture
def bob(tmp_path):
    return Person(tmp_path, "bob")


@pytest.fixture
def mallory(tmp_path):
    return Person(tmp_path, "mallory")


def log_key(seq):
    return f".mm/log/{seq:012d}.json"


def write(registry, count, start=0):
    for number in range(start, start + count):
        registry.add_model(registered("org/model", str(number)))


def resealed(commit):
    commit.pop("check", None)
    return seal(commit)


def test_a_signed_commit_says_who_made_it(sink, alice):
    """The signature is over the canonical JSON of all the rest, but for the checksum."""
    write(ModelRegistry(sink, keys=alice.keys()), 1)
    commit = json.loads(read_bytes(sink, log_key(1)))
    signature = commit.pop("signature")
    del commit["check"]
    assert signature["key"] == alice.text
    value = base64.b64decode(signature["value"])
    alice.private.public_key().verify(value, canonical_json(commit))
    assert len(ModelRegistry(sink).list_models()) == 1  # others need no keys to read it


def test_all_who_are_trusted_work_together(sink, alice, bob):
    """Each signs with its own key and believes both."""
    one = ModelRegistry(sink, keys=alice.keys(alice, bob))
    other = ModelRegistry(sink, keys=bob.keys(alice, bob))
    for number in range(0, 80, 2):
        write(one, 1, start=number)
        write(other, 1, start=number + 1)
    reader = Keys(trusted_keys=(alice.text, bob.text))
    registry = ModelRegistry(sink, keys=reader)
    assert len(registry.list_models()) == 80
    assert len(registry.history()) == 80


@pytest.mark.parametrize("seq", [1, 20, 40, 70])
@pytest.mark.parametrize("how", ["unsigned", "a stranger's", "changed", "borrowed", "rubbish"])
def test_what_is_not_signed_by_a_trusted_key_is_refused(sink, alice, mallory, seq, how):
    """Read warm or cold, out of the log or out of a pack, and whatever the chain says."""
    write(ModelRegistry(sink, keys=alice.keys()), seq - 1)
    reader = ModelRegistry(sink, keys=Keys(trusted_keys=(alice.text,)))
    assert len(reader.list_models()) == seq - 1
    forger = ModelRegistry(sink, keys=mallory.keys() if how == "a stranger's" else None)
    write(forger, 1, start=500)
    commit = json.loads(read_bytes(sink, log_key(seq)))
    write(ModelRegistry(sink, keys=alice.keys()), 1, start=600)  # another commit, to borrow from
    good = json.loads(read_bytes(sink, log_key(seq + 1)))["signature"]
    sink.delete([log_key(seq + 1)])
    if how == "changed":
        commit["signature"] = {**good, "value": base64.b64encode(b"x" * 64).decode()}
    elif how == "borrowed":
        commit["signature"] = good
    elif how == "rubbish":
        commit["signature"] = "by me"
    data = resealed(commit)
    sink.put(log_key(seq), data)
    for doubter in (reader, ModelRegistry(sink, keys=Keys(trusted_keys=(alice.text,)))):
        with pytest.raises(IntegrityError, match=f"commit {seq} ") as caught:
            doubter.list_models()
    assert "registry.trusted_keys" in caught.value.hint


def test_a_forged_checkpoint_is_not_believed(sink, alice):
    """Only a signed checkpoint is begun with: a better one is made, and the log has the truth."""
    write(ModelRegistry(sink, keys=alice.keys()), 40)
    hint = json.loads(read_bytes(sink, ".mm/hint.json"))
    state = gzip.decompress(read_bytes(sink, hint["key"]))
    assert state.count(b'"signature":') == 1
    forged = gzip.compress(state.replace(b"s3://elsewhere/7", b"s3://attacker/7"), mtime=0)
    key = f".mm/snap/{32:012d}-{sha256_hex(forged)[:12]}.json.gz"
    sink.delete([hint["key"]])
    sink.put(key, forged)
    sink.put(".mm/hint.json", canonical_json({**hint, "key": key, "sha256": sha256_hex(forged)}))
    assert str(ModelRegistry(sink).get_model("org/model", "7").path) == "s3://attacker/7"
    doubter = ModelRegistry(sink, keys=alice.keys(alice))
    assert str(doubter.get_model("org/model", "7").path) == "s3://elsewhere/7"
    write(doubter, 1, start=40)  # and mends it
    assert str(ModelRegistry(sink).get_model("org/model", "7").path) == "s3://elsewhere/7"


def test_an_unsigned_checkpoint_is_not_begun_with(sink, alice):
    """Whoever has no key may write one; those who trust keys replay the log."""
    write(ModelRegistry(sink, keys=alice.keys()), 31)
    write(ModelRegistry(sink, keys=alice.keys()), 1, start=31)
    hint = json.loads(read_bytes(sink, ".mm/hint.json"))
    state = json.loads(gzip.decompress(read_bytes(sink, hint["key"])))
    del state["signature"]
    data = gzip.compress(canonical_json(state), mtime=0)
    key = f".mm/snap/{32:012d}-{sha256_hex(data)[:12]}.json.gz"
    sink.put(key, data)
    sink.put(".mm/hint.json", canonical_json({**hint, "key": key, "sha256": sha256_hex(data)}))
    sink.delete([hint["key"]])
    assert len(ModelRegistry(sink, keys=Keys(trusted_keys=(alice.text,))).list_models()) == 32


def test_a_registry_is_signed_from_here_on(sink, alice):
    """What stood before is vouched for by a signed checkpoint, which `accept` writes."""
    write(ModelRegistry(sink), 50)
    with pytest.raises(IntegrityError, match="commit 1 .* it is not signed"):
        ModelRegistry(sink, keys=alice.keys(alice)).list_models()
    assert ModelRegistry(sink, keys=alice.keys(alice)).accept() == 50
    registry = ModelRegistry(sink, keys=alice.keys(alice))
    write(registry, 30, start=50)
    reader = ModelRegistry(sink, keys=Keys(trusted_keys=(alice.text,)))
    assert len(reader.list_models()) == 80
    assert len(reader.history()) == 80


def test_who_accepts_signs_what_the_log_says(sink, alice):
    """And not what stands in a checkpoint that nobody signed: history shows commits only."""
    write(ModelRegistry(sink), 40)
    hint = json.loads(read_bytes(sink, ".mm/hint.json"))
    state = gzip.decompress(read_bytes(sink, hint["key"]))
    forged = gzip.compress(state.replace(b"s3://elsewhere/7", b"s3://attacker/7"), mtime=0)
    key = f".mm/snap/{32:012d}-{sha256_hex(forged)[:12]}.json.gz"
    sink.put(key, forged)
    sink.put(".mm/hint.json", canonical_json({**hint, "key": key, "sha256": sha256_hex(forged)}))
    assert ModelRegistry(sink, keys=alice.keys(alice)).accept() == 40
    entry = ModelRegistry(sink, keys=alice.keys(alice)).get_model("org/model", "7")
    assert str(entry.path) == "s3://elsewhere/7"


@pytest.mark.parametrize("seq", [5, 34])
def test_who_accepts_a_log_with_a_gap_goes_by_what_leads_over_it(sink, alice, seq):
    """Signing begins there, too."""
    write(ModelRegistry(sink), 40)
    sink.put(log_key(seq), b"damaged")
    sink.delete([found.key for found in sink.list(".mm/tail/")])
    repair(sink)
    last = ModelRegistry(sink, keys=alice.keys(alice)).accept()
    write(ModelRegistry(sink, keys=alice.keys(alice)), 1, start=50)
    reader = ModelRegistry(sink, keys=Keys(trusted_keys=(alice.text,)))
    assert (reader.state().seq, last) == (41, 40)


def test_who_has_no_key_accepts_only_what_is_signed(sink, alice, bob):
    """It could not tell anybody, itself the next time included."""
    write(ModelRegistry(sink), 3)
    with pytest.raises(IntegrityError, match="not signed"):
        ModelRegistry(sink, keys=Keys(trusted_keys=(alice.text,))).accept()
    with pytest.raises(IntegrityError, match="not signed"):
        ModelRegistry(sink, keys=alice.keys(alice)).accept(vouch=False)
    with pytest.raises(ConfigError):
        ModelRegistry(sink, keys=bob.keys(alice)).accept()


def test_what_stands_in_for_a_lost_commit_must_be_signed(sink, alice):
    """Or else a stranger could part the history from what vouches for it."""
    write(ModelRegistry(sink, keys=alice.keys()), 40)
    commit = json.loads(read_bytes(sink, log_key(5)))
    del commit["signature"]
    sink.put(log_key(5), resealed({**commit, "operations": [], "stands_in": True}))
    assert len(ModelRegistry(sink).history()) == 40
    with pytest.raises(IntegrityError, match="commit 5 .* it is not signed"):
        ModelRegistry(sink, keys=alice.keys(alice)).history()


def test_nothing_is_committed_that_oneself_would_refuse(sink, alice, bob):
    """Trusting keys without having one of them, a process only reads."""
    write(ModelRegistry(sink, keys=alice.keys()), 1)
    for keys in (Keys(trusted_keys=(alice.text,)), bob.keys(alice)):
        registry = ModelRegistry(sink, keys=keys)
        assert len(registry.list_models()) == 1
        with pytest.raises(ConfigError, match="trusted_keys"):
            write(registry, 1, start=1)
    assert sink.stat(log_key(2)) is None


def test_a_cache_of_what_was_not_checked_is_not_used(sink, alice, tmp_path):
    """With trusted keys the read cache is another one."""
    cache = tmp_path / "cache"
    write(ModelRegistry(sink, cache=cache), 5)
    plain = ModelRegistry(sink, cache=cache)
    plain.load()
    doubter = ModelRegistry(sink, cache=cache, keys=Keys(trusted_keys=(alice.text,)))
    assert doubter._cache_folder not in (cache, None)
    with pytest.raises(IntegrityError, match="not signed"):
        doubter.list_models()


# -- keys


def test_a_trusted_key_may_be_written_in_several_ways(sink, alice, tmp_path):
    """As base64, in a file with that, as PEM of the public key or of the private one."""
    write(ModelRegistry(sink, keys=alice.keys()), 1)
    inside = tmp_path / "key.txt"
    inside.write_text(alice.text + "\n")
    for key in (alice.text, str(inside), str(alice.public_file), str(alice.file)):
        assert ModelRegistry(sink, keys=Keys(trusted_keys=(key,))).list_models()


@pytest.mark.parametrize("content", ["rubbish", "another kind", "encrypted", "absent"])
def test_a_file_without_a_key_is_a_configuration_error(sink, alice, tmp_path, content):
    """The error names the setting and the file, and quotes nothing of it."""
    file = tmp_path / "x.pem"
    if content == "rubbish":
        file.write_bytes(b"-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n")
    elif content == "another kind":
        file.write_bytes(pem(X25519PrivateKey.generate()))
    elif content == "encrypted":
        file.write_bytes(pem(alice.private, BestAvailableEncryption(b"hunter2")))
    for keys in (Keys(signing_key=str(file)), Keys(trusted_keys=(str(file),))):
        with pytest.raises(ConfigError, match=r"registry\.\w+_keys?: .*x\.pem") as caught:
            write(ModelRegistry(sink, keys=keys), 1)
        assert "hunter2" not in str(caught.value) + str(caught.value.hint)
    assert list(sink.list(".mm/log/")) == []


def test_without_the_package_the_extra_is_named(sink, alice, monkeypatch):
    """Nothing of it is imported before a key is needed."""
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.ed25519", None)
    write(ModelRegistry(sink), 1)
    with pytest.raises(MissingExtraError) as caught:
        write(ModelRegistry(sink, keys=alice.keys()), 1, start=1)
    assert "model-manager[sign]" in caught.value.hint


def test_the_settings_name_the_keys(tmp_path, alice, monkeypatch):
    """Files are relative to mm.yaml; what a manager commits is signed, and checked."""
    (tmp_path / "mm.yaml").write_text(
        "version: 1\nbackends: {dev: {type: local, root: ./store}}\n"
        "registry: {signing_key: alice.pem, trusted_keys: [./alice.pub]}\n"
    )
    monkeypatch.chdir(tmp_path)
    with ModelManager() as manager:
        write(manager.registry(), 2)
    commit = json.loads((tmp_path / "store/.mm/log/000000000002.json").read_bytes())
    assert commit["signature"]["key"] == alice.text
    del commit["signature"]
    (tmp_path / "store/.mm/log/000000000002.json").write_bytes(resealed(commit))
    with ModelManager() as manager, pytest.raises(IntegrityError):
        manager.list_models()


@pytest.mark.parametrize("address", ["mm://lake/org/m", "mm://lake/org/m:prod"])
def test_what_another_backend_says_must_be_signed_too(tmp_path, alice, address):
    """Who trusts keys pulls from no registry that none of them signed, by whatever address."""
    backends = {
        name: {"type": "local", "root": str(tmp_path / name), "fsync": False}
        for name in ("lake", "dr")
    }
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights").write_bytes(b"a stranger's")
    with ModelManager(load_settings(overrides={"backends": backends})) as stranger:
        stranger.push(tmp_path / "model", "org/m", version="1", to="lake", aliases=["prod"])
    registry = {"signing_key": str(alice.file), "trusted_keys": [alice.text]}
    settings = load_settings(overrides={"backends": backends, "registry": registry})
    with ModelManager(settings) as manager, pytest.raises(IntegrityError, match="not to be believ"):
        manager.pull(address, to="dr")
    assert not (tmp_path / "dr/models").exists()
