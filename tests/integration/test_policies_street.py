"""Policies down the whole street: a hub, each kind of backend, and the store afterwards."""

from __future__ import annotations

import types
from pathlib import Path

import pytest

from mm_core import (
    Checked,
    Finding,
    ModelManager,
    ModelStatus,
    Plugins,
    Policy,
    PolicyError,
    hookimpl,
    load_settings,
)
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
