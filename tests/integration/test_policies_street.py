"""Policies down the whole street: a hub, each kind of backend, and the store afterwards."""

from __future__ import annotations

import collections
import gzip
import importlib.metadata
import io
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import pytest

from mm_core import (
    Checked,
    Finding,
    MissingExtraError,
    ModelManager,
    ModelStatus,
    Plugins,
    Policy,
    PolicyError,
    hookimpl,
    load_settings,
)
from mm_core.cli import main
from mm_core.testing.material import noise

pytestmark = pytest.mark.integration

FILES = {"config.json": b"{}", "model.safetensors": noise(12_000_000)}


class Evil(Policy):
    """Refuses what begins with a word."""

    type = "evil"
    reads_content = True

    def check_content(self, plan, content, context):
        paths = [f.path for f in content.files if content.open(f.path).read(4) == b"evil"]
        found = [Finding(rule="evil", path=p, message="it is evil", allow="mend it") for p in paths]
        return Checked(findings=tuple(found), facts={"files": len(content.files)})


@pytest.fixture
def pulls(monkeypatch):
    """Managers with such a policy, and no other, and whatever settings a test wants."""
    made = []

    class Offer:
        @hookimpl
        def mm_policies(self):
            return [Evil]

    def make(backend, **sets):
        sets = sets or {"ours": {"evil": {}}}
        overrides = {"policies": {"default": {}, **sets}, "defaults.backend": backend}
        made.append(
            ModelManager(
                load_settings(overrides=overrides), plugins=Plugins.discover(extra=[Offer()])
            )
        )
        return made[-1]

    yield make
    for manager in made:
        manager.close()


@pytest.mark.parametrize("backend", ["local", "s3"], indirect=True)
def test_of_a_refused_model_nothing_stays_behind(hub, backend, pulls):
    """In no store: no object but the registry's own, no part of an upload, no version to be had."""
    hub.add_repo("org/good", files=FILES)
    hub.add_repo("org/evil", files={**FILES, "x/weights.bin": b"evil" + noise(9_000_000)})
    manager = pulls(backend)
    good = manager.pull("hf://org/good").entry
    with pytest.raises(PolicyError, match=r"x/weights\.bin: it is evil"):
        manager.pull("hf://org/evil")
    sink = manager.sink()
    assert [stored.key for stored in sink.list("models/org/evil/")] == []
    assert list(sink.unfinished("models/")) == []
    assert [entry.status for entry in manager.list_models()] == [
        ModelStatus.FAILED,
        ModelStatus.AVAILABLE,
    ]
    assert [stored.key for stored in sink.list(".mm/manifests/")] == [
        f".mm/manifests/{good.manifest}.json"
    ]
    assert manager.registry().manifest(good).checks == {"evil": {"files": 2}}
    assert manager.verify().ok


def test_the_verdict_reads_no_more_than_it_needs(hub, tmp_path, pulls):
    """A few ranges at the hub, and nothing is written."""
    hub.add_repo("org/evil", files={**FILES, "w.bin": b"evil" + bytes(20_000_000)})
    manager = pulls(str(tmp_path / "store"))
    verdict = manager.check_policies("hf://org/evil")
    assert [(r.finding.path, r.setting) for r in verdict.rulings] == [
        ("w.bin", "policies.ours.evil")
    ]
    assert hub.sent_bytes < 1_000_000
    assert not (tmp_path / "store").exists()


def test_what_a_hub_states_is_judged_before_a_byte_moves(hub, tmp_path, pulls):
    """Licence, age, origin and revision, all told at once."""
    hub.add_repo("org/m", files=FILES, license="cc-by-nc-4.0")
    sets = {
        "licenses": {"allow": ["mit"]},
        "age": {"max": "1d"},
        "sources": {"allow": ["hf://other/*"]},
        "revision": {"pinned": True},
        "limits": {"max_size": "1MB"},
    }
    manager = pulls(str(tmp_path / "store"), ours=sets)
    with pytest.raises(PolicyError) as caught:
        manager.pull("hf://org/m")
    assert {found["rule"] for found in caught.value.findings} == {
        "licenses.allow", "age.max", "sources.allow", "revision.pinned", "limits.max_size",
    }  # fmt: skip
    assert hub.sent_bytes == 0
    assert not (tmp_path / "store").exists()


def test_the_hubs_own_name_of_a_repository_is_judged(hub, tmp_path, pulls):
    """A hub answers to other spellings as well; they are no way round."""
    commit = hub.add_repo("Evil/m", files=FILES)
    hub.repos["evil/M"] = hub.repos["Evil/m"]
    manager = pulls(str(tmp_path / "store"), ours={"sources": {"allow": ["hf://evil/M*"]}})
    with pytest.raises(PolicyError, match=f"it comes from hf://Evil/m@{commit}"):
        manager.pull("hf://evil/M")


def documented() -> dict:
    import re

    page = Path(__file__).parents[2] / "docs" / "write-a-policy.md"
    names: dict = {"__name__": "documented"}
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S):
        exec(compile(block, str(page), "exec"), names)
    return names


DOCUMENTED = documented()


class TestDocumented(DOCUMENTED["TestSecrets"]):
    """The documented policy's own tests."""


def test_the_documented_policy_down_the_street(tmp_path):
    """A stranger's policy, offered by its hook and set in mm.yaml, holds like a built-in one."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/notes.txt").write_text("key: AKIA" + "0123456789ABCDEF")
    settings = load_settings(overrides={"policies": {"ours": {"secrets": {}}, "default": {}}})
    plugins = Plugins.discover(extra=[types.SimpleNamespace(mm_policies=DOCUMENTED["mm_policies"])])
    with ModelManager(settings, plugins=plugins, backend=str(tmp_path / "store")) as manager:
        with pytest.raises(PolicyError, match=r"notes\.txt: it holds what looks like a key"):
            manager.push(tmp_path / "model", "m")
        assert list(manager.sink().list("models/")) == []


class Owner:
    def __reduce__(self):
        return os.system, ("echo owned",)


def _zipped(data):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", data)
    return out.getvalue()


MALICIOUS = {
    "pytorch_model.bin": pickle.dumps(Owner(), protocol=2),
    "model.safetensors": pickle.dumps(Owner(), protocol=4),
    "weights.zip": _zipped(pickle.dumps(Owner(), protocol=0)),
    "model.pt": _zipped(pickle.dumps(Owner(), protocol=3)),
    "vectors.npy.gz": gzip.compress(pickle.dumps(Owner(), protocol=5)),
}


@pytest.mark.parametrize("backend", ["local", "s3"], indirect=True)
@pytest.mark.parametrize("name", MALICIOUS)
def test_a_malicious_pickle_is_refused_without_any_setting(hub, backend, name, capfd):
    """Whatever its file is called and wherever it is packed; nothing of the model can be had."""
    hub.add_repo("org/bad", files={"config.json": b"{}", name: MALICIOUS[name]})
    assert main(["pull", "hf://org/bad", "--to", backend]) == 7
    said = capfd.readouterr().err
    assert name in said
    assert "to allow it" in said
    assert main(["get", "org/bad", "--backend", backend]) == 3
    assert main(["policy", "check", "hf://org/bad", "--to", backend, "--json"]) == 7
    assert main(["scan", "hf://org/bad", "--backend", backend]) == 7
    capfd.readouterr()
    with ModelManager(backend=backend) as manager:
        assert [stored.key for stored in manager.sink().list("models/")] == []
        assert [entry.status for entry in manager.list_models()] == [ModelStatus.FAILED]


def test_an_honest_model_enters_without_any_setting(hub, local):
    """With pickles that import what torch needs, and the manifest says who looked."""
    honest = pickle.dumps(collections.OrderedDict(a=1))
    hub.add_repo("org/good", files={"config.json": b"{}", "pytorch_model.bin": _zipped(honest)})
    with ModelManager(backend=local) as manager:
        manager.pull("hf://org/good")
        checks = manager.show("org/good").manifest.checks
        assert checks["scan"] | {"time": ""} == {
            "scanner": "picklescan",
            "version": importlib.metadata.version("picklescan"),
            "time": "",
            "files": 2,
            "pickles": 1,
            "allowed": [],
            "ok": True,
        }
        assert manager.scan("org/good").ok


def test_a_scanner_that_is_not_there_is_missed_only_where_there_is_a_pickle(
    hub, local, monkeypatch
):
    """The error names the extra, and what was fetched waits for it; others need none."""
    hub.add_repo("org/safe", files={"config.json": b"{}", "w.bin": noise(5000)})
    hub.add_repo("org/pickled", files={"w.bin": pickle.dumps({"a": 1})})
    with ModelManager(backend=local) as manager:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "picklescan", None)
            manager.pull("hf://org/safe")
            with pytest.raises(MissingExtraError) as caught:
                manager.pull("hf://org/pickled")
        assert "model-manager[scan]" in caught.value.hint
        assert {e.model_id: e.status for e in manager.list_models()} == {
            "org/safe": ModelStatus.AVAILABLE,
            "org/pickled": ModelStatus.FAILED,
        }
        assert manager.pull("hf://org/pickled").fetched_bytes == 0  # once it is installed


@pytest.mark.parametrize("broken", [RuntimeError("cannot"), None])
def test_a_scanner_that_fails_or_skips_counts_as_failed(hub, local, monkeypatch, broken):
    """What it passes over, though we saw it, is not let in."""
    from picklescan import scanner

    def scan(*_, **__):
        if broken is not None:
            raise broken
        return scanner.ScanResult([], scanned_files=0)

    monkeypatch.setattr(scanner, "scan_pickle_bytes", scan)
    hub.add_repo("org/m", files={"w.bin": pickle.dumps(collections.OrderedDict(a=1))})
    with ModelManager(backend=local) as manager, pytest.raises(PolicyError, match=r"w\.bin|cannot"):
        manager.pull("hf://org/m")
