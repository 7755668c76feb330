"""Bundles: what is carried to a place without a network comes to be the same there, or is refused."""

from __future__ import annotations

import hashlib
import io
import random
import subprocess
import sys
import tarfile

import pytest
from bundled import FILES, bring_there_and_compare, make_store, mm, push

from mm_core import IntegrityError, MMError, ModelManager, NotFoundError, StorageError, UsageError
from mm_core.bundles import Bundle
from mm_core.testing.signing import Person

pytestmark = pytest.mark.integration


@pytest.fixture
def keys(tmp_path):
    """A key to sign with, and its public half."""
    somebody = Person(tmp_path, "somebody")
    return somebody.key, somebody.public


@pytest.fixture
def store(tmp_path, keys):
    """A store with three versions, of which one is signed."""
    return make_store(tmp_path, keys[0])


def exported(store, *references) -> bytes:
    out = io.BytesIO()
    with ModelManager(backend=store) as manager:
        assert manager.export_bundle(references, out) == len(out.getvalue())
    return out.getvalue()


@pytest.fixture
def bundle(tmp_path, store):
    path = tmp_path / "models.tar"
    path.write_bytes(exported(store, "org/one@1", "two"))
    return path


def test_there_and_back(store, bundle, backend, keys):
    """Into a disk, S3 and GCS: equal entries and bytes, aliases, and signatures that hold."""
    bring_there_and_compare(store, bundle, backend, keys[1])


def test_the_same_versions_are_the_same_bytes(store, bundle):
    """Whoever exports them, in whatever order; and it is a tar that others read."""
    assert exported(store, "two", "org/one:prod", "org/one@1") == bundle.read_bytes()
    with tarfile.open(bundle) as tar:
        for member in tar:
            data = tar.extractfile(member).read()
            named = member.name.removesuffix(".json").rpartition("/")[2].removeprefix("index-")
            assert hashlib.sha256(data).hexdigest() == named
        assert len([name for name in tar.getnames() if name.startswith("blobs/")]) == 5


def test_a_bit_that_was_flipped_is_found_and_named(tmp_path, bundle, local):
    """In every head, filling and small member, and anywhere in the bytes of models."""
    good = bundle.read_bytes()
    with tarfile.open(bundle) as tar:
        members = tar.getmembers()
    choice = random.Random(20261127)
    places = {0, 100, 124, 148, 156, 257, 511, len(good) - 1, len(good) - 10_000}
    for member in members:
        places |= {member.offset + at for at in (0, 60, 124, 150, 300, 511)}
        if member.size:
            places |= {member.offset_data, member.offset_data + member.size - 1}
            places.add(member.offset_data + choice.randrange(member.size))
        if member.size % 512:
            places.add(member.offset_data + member.size)
    places |= {choice.randrange(len(good)) for _ in range(60)}
    names = [member.name for member in members]
    bad = tmp_path / "bad.tar"
    for number, place in enumerate(sorted(places)):
        data = bytearray(good)
        data[place] ^= 1 << choice.randrange(8)
        bad.write_bytes(data)
        with ModelManager(backend=f"{local}-{number}") as manager:
            try:
                done = manager.import_bundle(bad)
                error = next(one.error for one in done if one.error is not None)
            except MMError as refused:
                error = refused
                assert manager.list_models() == []
            assert isinstance(error, (IntegrityError, UsageError)), place
            said = str(error)
            assert any(
                word in said for word in (*names, *FILES, "index", "first block", "the end")
            ), (place, said)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 5000, 100_000, -1, -512, -10_240])
def test_a_bundle_that_was_cut(tmp_path, bundle, local, size):
    """Wherever; and one that goes on after its end."""
    data = bundle.read_bytes()
    bad = tmp_path / "bad.tar"
    bad.write_bytes(data[:size])
    with ModelManager(backend=local) as manager:
        with pytest.raises((IntegrityError, UsageError)):
            manager.import_bundle(bad)
        bad.write_bytes(data + bytes(512))
        with pytest.raises(IntegrityError, match="after its end"):
            manager.import_bundle(bad)
        with pytest.raises(NotFoundError):
            manager.import_bundle(tmp_path / "none.tar")
        assert manager.list_models() == []


def test_aliases_of_others_stay(tmp_path, store, bundle, local):
    """Unless they are to be moved; none is set where none is wanted."""
    with ModelManager(backend=local) as manager:
        push(manager, tmp_path / "mine", {"a": b"mine"}, "org/one", version="5", aliases=["prod"])
        done = manager.import_bundle(bundle, aliases=False)
        assert {one.aliases for one in done} == {()}
        one, _ = manager.import_bundle(bundle)
        assert (one.aliases, one.left) == (("old",), ("prod",))
        assert manager.registry().resolve("org/one:prod").version == "5"
        one, _ = manager.import_bundle(bundle, move_aliases=True)
        assert (one.aliases, one.left) == (("old", "prod"), ())
        assert manager.registry().resolve("org/one:prod").version == "1"


def test_an_import_goes_on_where_it_stopped(tmp_path, bundle, local):
    """What is there is not moved again."""
    with ModelManager(backend=local) as manager:
        manager.import_bundle(bundle)
        manager.remove("two@2")
        done = {one.reference: one.outcome for one in manager.import_bundle(bundle)}
        assert done["org/one@1"] == "present"
        assert {e.model_id for e in manager.list_models()} == {"org/one", "two"}


def test_damage_is_not_carried_on(tmp_path, store):
    """A stored file that is not what it should be: no bundle is left behind."""
    with ModelManager(backend=store) as manager:
        place = manager.registry().resolve("org/one@1").path / "deep/w.bin"
    place.chmod(0o644)
    with place.open("r+b") as file:
        file.write(b"damage")
    out = tmp_path / "out.tar"
    run = mm("export", "org/one@1", "--backend", store, "-o", str(out), code=6)
    assert "deep/w.bin" in run["error"]["message"]
    assert not out.exists()


def test_a_bundle_is_only_read(bundle):
    """Whoever would change it."""
    opened = Bundle(bundle)
    for change in (
        lambda: opened.put("x", b""),
        lambda: opened.create("x", b""),
        lambda: opened.write("x", [], size=0),
        lambda: opened.copy("x", "y"),
        lambda: opened.delete(["x"]),
    ):
        with pytest.raises(StorageError, match="only read"):
            change()
    opened.close()


def test_the_commands(tmp_path, store, bundle, local):
    """To a file and to stdout; a look at what is in it; into a backend; a policy that refuses."""
    out = tmp_path / "out.tar"
    told = mm("export", "org/one:prod", "two", "--backend", store, "-o", str(out))
    assert told["size_bytes"] == out.stat().st_size
    assert out.read_bytes() == bundle.read_bytes()
    words = [sys.executable, "-m", "mm_core", "export", "org/one@1", "two", "--backend", store]
    piped = subprocess.run([*words, "-o", "-"], capture_output=True, check=True).stdout
    assert piped == bundle.read_bytes()
    mm("export", "two", "--backend", store, "-o", str(out), code=8)
    looked = mm("import", str(out), "-n")["versions"]
    assert [(one["reference"], one["signatures"]) for one in looked] == [
        ("org/one@1", 1), ("two@2", 0)
    ]  # fmt: skip
    results = mm("import", str(out), "--to", local)["results"]
    assert [one["outcome"] for one in results] == ["imported", "imported"]
    (tmp_path / "mm.yaml").write_text("policies: {default: {limits: {max_size: 1000}}}")
    told = mm("import", str(out), "--to", f"{local}-2", code=10, cwd=tmp_path)
    assert set(told["error"]["errors"]) == {"org/one@1"}
