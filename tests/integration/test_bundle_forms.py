"""Bundles in folders and as OCI layouts: as whole, as equal and as strict as the one file."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bundled import FILES, bring_there_and_compare, make_store, mm, push
from waiting import until

from mm_core import IntegrityError, ModelManager, UsageError
from mm_core.testing.material import noise
from mm_core.testing.signing import Person

pytestmark = pytest.mark.integration

FORMS = ["folder", "oci"]
MODEL = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"


@pytest.fixture
def somebody(tmp_path):
    return Person(tmp_path, "somebody")


@pytest.fixture
def store(tmp_path, somebody):
    return make_store(tmp_path, somebody.key)


@pytest.fixture(params=FORMS)
def form(request) -> str:
    return request.param


def export(store, folder, form, *references, **options) -> int:
    with ModelManager(backend=store) as manager:
        return manager.export_bundle_folder(references, folder, oci=form == "oci", **options)


@pytest.fixture
def bundle(tmp_path, store, form) -> Path:
    folder = tmp_path / "bundle"
    export(store, folder, form, "org/one@1", "two")
    return folder


def tree(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    }


@pytest.fixture
def refused(tmp_path):
    """What an import says that must not bring all; where it was refused whole, nothing is there."""
    with ModelManager(backend=str(tmp_path / "to")) as manager:
        numbers = itertools.count()
        fresh = str(tmp_path / "to")

        def tried(bundle) -> str:
            nonlocal fresh
            try:
                done = manager.import_bundle(bundle, to=fresh)
            except (IntegrityError, UsageError) as error:
                assert not Path(fresh).exists()
                return str(error)
            errors = [one.error for one in done if one.error is not None]
            assert errors
            assert all(isinstance(error, IntegrityError) for error in errors)
            fresh = str(tmp_path / f"to-{next(numbers)}")
            return str(errors[0])

        yield tried


def test_there_and_back(store, bundle, backend, somebody):
    """Into a disk, S3 and GCS: equal entries and bytes, aliases, and signatures that hold."""
    bring_there_and_compare(store, bundle, backend, somebody.public)


def test_the_same_versions_are_the_same_bytes(tmp_path, store, form, bundle):
    """In whatever order they are named; the index is that of the tar, and all is named by sha256."""
    other = tmp_path / "other"
    size = export(store, other, form, "two", "org/one:prod", "org/one@1")
    assert tree(other) == tree(bundle)
    assert size == sum(map(len, tree(bundle).values()))
    out = io.BytesIO()
    with ModelManager(backend=store) as manager:
        manager.export_bundle(["two", "org/one@1"], out)
    index = out.getvalue()[:100].rstrip(b"\0").decode()
    if form == "folder":
        assert index in tree(bundle)
    else:
        assert f"blobs/sha256/{index[6:-5]}" in tree(bundle)
    for name, data in tree(bundle).items():
        if name not in ("index.json", "oci-layout"):
            assert hashlib.sha256(data).hexdigest() in name


def test_a_bit_that_was_flipped_is_found_and_named(tmp_path, form, bundle, refused):
    """In each file, at both ends and between; in what is small, in every byte."""
    choice, number = random.Random(20261128), 0
    for name, data in tree(bundle).items():
        small = name in ("index.json", "oci-layout")
        places = {0, len(data) - 1, *(choice.randrange(len(data)) for _ in range(5) if data)}
        for place in range(len(data)) if small else sorted(places if data else ()):
            bad = bytearray(data)
            bad[place] ^= 1 << choice.randrange(8)
            (bundle / name).write_bytes(bad)
            said = refused(bundle)
            named = (Path(name).name, "the index of", *FILES)
            assert any(word in said for word in named[: 1 if small else None]), (place, said)
            number += 1
        (bundle / name).write_bytes(data)
    with ModelManager(backend=str(tmp_path / "at last")) as manager:
        assert {one.outcome for one in manager.import_bundle(bundle)} == {"imported"}
    assert number > (900 if form == "oci" else 40)


def test_what_is_missing_cut_long_more_or_a_link(tmp_path, bundle, refused):
    """Each is found before anything is moved, and named."""
    whole = tree(bundle)
    for name, data in whole.items():
        path = bundle / name
        blob = name.startswith("blobs/")
        path.unlink()
        said = refused(bundle)
        assert not blob or name in said
        aside = tmp_path / "aside"
        aside.write_bytes(data)
        path.symlink_to(aside)
        assert not blob or name in refused(bundle)
        path.unlink()
        for other in (data + b"\0", data[:-1]):
            if other != data:
                path.write_bytes(other)
                said = refused(bundle)
                assert not blob or name in said
        path.write_bytes(data)
        assert not list(tmp_path.glob("to*"))
    for more in ("more", "blobs/more", "sub/deep", "blobs/" + "0" * 64):
        (bundle / more).parent.mkdir(exist_ok=True)
        (bundle / more).write_bytes(b"")
        assert more in refused(bundle)
        (bundle / more).unlink()
    with ModelManager(backend=str(tmp_path / "at last")) as manager:
        assert {one.outcome for one in manager.import_bundle(bundle)} == {"imported"}


def test_an_export_that_was_cut_goes_on(tmp_path, store, form, bundle):
    """It is no bundle before; what was written stays as it is, what is half or wrong is replaced."""
    with ModelManager(backend=store) as manager:
        stored = manager.registry().resolve("org/one@1").path / "config.json"
    good = stored.read_bytes()
    stored.chmod(0o644)
    stored.write_bytes(b"damage!!")
    folder = tmp_path / "cut"
    with pytest.raises(IntegrityError, match=r"config\.json of org/one@1 is damaged"):
        export(store, folder, form, "org/one@1", "two")
    with pytest.raises((UsageError, IntegrityError), match=r"no index is in it|index\.json"), \
            ModelManager(backend=str(tmp_path / "to")) as manager:  # fmt: skip
        manager.import_bundle(folder)
    stored.write_bytes(good)
    written = {name: (folder / name).stat().st_ino for name in tree(folder)}
    assert set(written) < set(tree(bundle))
    changed = next(name for name, data in tree(folder).items() if len(data) > 1_000_000)
    with (folder / changed).open("r+b") as file:
        file.write(b"flip")
    half = folder / changed
    half.with_name(f".{half.name}.{'0f' * 16}").write_bytes(b"half")
    export(store, folder, form, "org/one@1", "two")
    assert tree(folder) == tree(bundle)
    same = {name for name, inode in written.items() if (folder / name).stat().st_ino == inode}
    assert same == set(written) - {changed}


def test_an_export_that_was_killed_goes_on(tmp_path, local, form):
    """By SIGKILL, in the middle of a blob."""
    with ModelManager(backend=local) as manager:
        files = {f"{n}.bin": noise(30_000_000 + n) for n in range(5)}
        push(manager, tmp_path / "big", files, "big", version="1")
    folder = tmp_path / "killed"
    words = ["export", "big", "--backend", local, "--as", form, "-o", str(folder)]
    run = subprocess.Popen(
        [sys.executable, "-m", "mm_core", *words], env=os.environ, stdout=subprocess.DEVNULL
    )
    until(lambda: len(list(folder.rglob("blobs/**/*[0-9a-f]"))) >= 3, 60)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert (
        "index"
        in mm("import", str(folder), "-n", code=2 if form == "folder" else 6)["error"]["message"]
    )
    mm(*words)
    whole = tmp_path / "whole"
    export(local, whole, form, "big")
    assert tree(folder) == tree(whole)


def test_other_files_are_left(tmp_path, store, form):
    """Those of nobody's bundle always; another bundle is replaced only where it is said."""
    folder = tmp_path / "taken"
    words = ["--backend", store, "--as", form, "-o", str(folder)]
    assert mm("export", "two", *words)["form"] == form
    before = tree(folder)
    assert mm("export", "two", *words)["size_bytes"] == sum(map(len, before.values()))
    assert "another bundle" in mm("export", "org/one@9", *words, code=8)["error"]["message"]
    assert tree(folder) == before
    mm("export", "org/one@9", *words, "--force")
    assert tree(folder) != before
    fresh = tmp_path / "fresh"
    export(store, fresh, form, "org/one@9")
    assert tree(folder) == tree(fresh)
    (folder / "thesis.tex").write_bytes(b"mine")
    for more in ([], ["--force"]):
        assert "thesis.tex" in mm("export", "two", *words, *more, code=8)["error"]["message"]
    assert tree(folder) == {**tree(fresh), "thesis.tex": b"mine"}


def test_the_commands(tmp_path, store, local):
    """The form is chosen by the path, or by --as; import sees it by itself."""
    told = mm("export", "org/one@1", "--backend", store, "-o", f"{tmp_path}/out/")
    assert told["form"] == "folder"
    (looked,) = mm("import", str(tmp_path / "out"), "-n")["versions"]
    assert (looked["reference"], looked["signatures"]) == ("org/one@1", 1)
    mm("export", "org/one@1", "--backend", store, "-o", "-", "--as", "oci", code=2)
    mm("import", str(tmp_path), "--to", local, code=2)
    assert "pipe" in mm("import", "-", "--to", local, code=2)["error"]["message"]
    mm("import", str(tmp_path / "none"), "--to", local, code=3)
    (tmp_path / "file").write_bytes(b"")
    mm("export", "two", "--backend", store, "--as", "folder", "-o", str(tmp_path / "file"), code=1)
    (tmp_path / "out" / "more").write_bytes(b"")
    assert "more" in mm("import", str(tmp_path / "out"), "--to", local, code=6)["error"]["message"]
    (tmp_path / "out" / "more").unlink()
    (done,) = mm("import", str(tmp_path / "out"), "--to", local)["results"]
    assert (done["outcome"], done["aliases"]) == ("imported", ["old", "prod"])


def test_an_index_that_leads_out_of_the_folder(tmp_path, refused):
    """A bundle that somebody made up names no file of ours."""
    (tmp_path / "secret").write_bytes(b"abc")
    data = json.dumps(
        {"format": 1, "versions": [], "members": [["blobs/../../secret", 3]]}
    ).encode()
    folder = tmp_path / "made-up"
    folder.mkdir()
    (folder / f"index-{hashlib.sha256(data).hexdigest()}.json").write_bytes(data)
    assert "is no member" in refused(folder)


# -- OCI ------------------------------------------------------------------------------------


def blob(layout, descriptor) -> bytes:
    """As any reader of OCI layouts takes it."""
    algorithm, _, digest = descriptor["digest"].partition(":")
    data = (layout / "blobs" / algorithm / digest).read_bytes()
    assert len(data) == descriptor["size"]
    assert hashlib.new(algorithm, data).hexdigest() == digest
    return data


def test_a_layout_is_one_of_modelpacks(tmp_path, store, local):
    """As the specifications of OCI and ModelPack say; everything is reached from index.json."""
    with ModelManager(backend=store) as manager:
        files = {
            "model.safetensors": b"w", "config.json": b"{}", "LICENSE": b"l", "README.md": b"r",
            "modeling.py": b"c", ".gitattributes": b"g", "tokenizer.model": b"t",
        }  # fmt: skip
        push(manager, tmp_path / "all", files, "all/kinds", version="3")
    layout = tmp_path / "layout"
    export(store, layout, "oci", "all/kinds", "two")
    assert json.loads((layout / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((layout / "index.json").read_bytes())
    assert (index["schemaVersion"], index["mediaType"]) == (
        2, "application/vnd.oci.image.index.v1+json"
    )  # fmt: skip
    reached = set()
    for descriptor in index["manifests"]:
        assert descriptor["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
        manifest = json.loads(blob(layout, descriptor))
        assert manifest["mediaType"] == descriptor["mediaType"]
        assert manifest["artifactType"] == descriptor["artifactType"]
        for one in (manifest["config"], *manifest["layers"]):
            blob(layout, one)
            reached.add(one["digest"])
        reached.add(descriptor["digest"])
    assert {name[len("blobs/sha256/") :] for name in tree(layout) if "blobs" in name} == {
        digest.removeprefix("sha256:") for digest in reached
    }
    model = index["manifests"][0]
    assert model["artifactType"] == MODEL
    assert model["annotations"] == {"org.opencontainers.image.ref.name": "all/kinds:3"}
    manifest = json.loads(blob(layout, model))
    kinds = {
        layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"]
        .removeprefix("application/vnd.cncf.model.")
        .removesuffix(".v1.raw")
        for layer in manifest["layers"]
    }
    assert kinds == {
        "model.safetensors": "weight", "config.json": "weight.config", "LICENSE": "doc",
        "README.md": "doc", "modeling.py": "code", ".gitattributes": "weight.config",
        "tokenizer.model": "weight.config",
    }  # fmt: skip
    for layer in manifest["layers"]:
        assert blob(layout, layer) == files[layer["annotations"]["org.cncf.model.filepath"]]
    assert manifest["config"]["mediaType"] == CONFIG
    config = json.loads(blob(layout, manifest["config"]))
    assert set(config) == {"descriptor", "config", "modelfs"}
    assert (config["descriptor"]["name"], config["descriptor"]["version"]) == ("all/kinds", "3")
    assert config["config"] == {"format": "safetensors"}
    assert config["modelfs"] == {
        "type": "layers", "diffIds": [layer["digest"] for layer in manifest["layers"]]
    }  # fmt: skip


class Packer:
    """Another program that packs models: it writes what it likes where the formats leave it free."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "blobs/sha256").mkdir(parents=True)
        (folder / "oci-layout").write_text('{\n  "imageLayoutVersion": "1.0.0"\n}\n')

    def add(self, media_type: str, data: bytes, **more) -> dict:
        digest = hashlib.sha256(data).hexdigest()
        (self.folder / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data), **more}

    def pack(self, files, descriptor, ref, suffix="raw") -> None:
        layers = [
            self.add(
                f"application/vnd.cncf.model.weight.v1.{suffix}", data,
                annotations={"org.cncf.model.filepath": path},
            )
            for path, data in files.items()
        ]  # fmt: skip
        config = {
            "descriptor": descriptor,
            "config": {},
            "modelfs": {"type": "layers", "diffIds": []},
        }
        manifest = {
            "schemaVersion": 2,
            "artifactType": MODEL,
            "config": self.add(CONFIG, json.dumps(config, indent=1).encode()),
            "layers": layers,
        }
        named = self.add(
            "application/vnd.oci.image.manifest.v1+json", json.dumps(manifest, indent=1).encode(),
            annotations={"org.opencontainers.image.ref.name": ref},
        )  # fmt: skip
        root = json.dumps({"schemaVersion": 2, "manifests": [named]}, indent=1)
        (self.folder / "index.json").write_text(root)


def test_a_model_that_another_program_packed(tmp_path, local, refused):
    """Comes by its own name; its tag becomes an alias; a bit that was flipped is found."""
    layout = tmp_path / "layout"
    about = {"name": "their/model", "version": "3.1", "licenses": ["MIT"]}
    Packer(layout).pack(FILES, about, "latest")
    with ModelManager(backend=local) as manager:
        (done,) = manager.import_bundle(layout)
        assert (done.outcome, done.reference, done.aliases) == (
            "imported", "their/model@3.1", ("latest",)
        )  # fmt: skip
        found = manager.get("their/model:latest").path
        assert {path: (found / path).read_bytes() for path in FILES} == FILES
        assert manager.show("their/model").manifest.license == "MIT"
    for name, data in tree(layout).items():
        if name.startswith("blobs/") and data:
            (layout / name).write_bytes(bytes([data[0] ^ 1]) + data[1:])
            refused(layout)
            (layout / name).write_bytes(data)


@pytest.mark.parametrize(
    ("about", "ref", "suffix", "says"),
    [
        ({}, "latest", "raw", "has no name"),
        ({"name": "a"}, "latest", "tar", "is packed"),
        ({"name": "../a"}, "latest", "raw", "not allowed"),
    ],
)
def test_what_another_program_packed_and_cannot_be_imported(
    tmp_path, refused, about, ref, suffix, says
):
    """What has no name that can be one here, and what would have to be unpacked."""
    Packer(tmp_path / "layout").pack({"w": b"w"}, about, ref, suffix)
    assert says in refused(tmp_path / "layout")


def test_a_packed_model_without_a_version(tmp_path, local):
    """Its repository is in its name; its version is the digest of its manifest."""
    Packer(tmp_path / "layout").pack({"w": b"w"}, {}, "their/model:v1")
    with ModelManager(backend=local) as manager:
        manager.import_bundle(tmp_path / "layout")
        entry = manager.registry().resolve("their/model:v1")
    assert (tmp_path / "layout/blobs/sha256" / entry.version).is_file()
