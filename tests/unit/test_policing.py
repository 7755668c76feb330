"""Policies are asked on every way into a backend, and of what they refuse nothing stays behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from pydantic import Field, SecretStr

from mm_core import (
    CancelledError,
    Checked,
    ConfigError,
    Finding,
    ModelManager,
    ModelStatus,
    NotFoundError,
    PluginConfig,
    PluginError,
    Plugins,
    Policy,
    PolicyError,
    TransientError,
    UsageError,
    claiming,
    hookimpl,
    load_settings,
)
from mm_core.copies import Outcome
from mm_core.schemas import Manifest
from mm_core.testing.material import noise
from mm_plugins.sinks import local, memory
from mm_plugins.sources import folder, registry

pytestmark = pytest.mark.unit

BUILT_IN = (local, memory, folder, registry)
LARGE = noise(9_000_001)


class NamesPolicy(Policy):
    """Refuses files by their suffix, before a byte moves."""

    type = "names"

    class Config(PluginConfig):
        deny: list[str] = Field(default=["pkl"], description="Suffixes")
        warn: bool = Field(default=False, description="Let it in all the same")
        pin: SecretStr | None = Field(default=None, description="A secret")

    def check_plan(self, plan, context):
        for planned in plan.files:
            if planned.file.path.endswith(tuple(self.config.deny)):
                yield Finding(
                    rule="names.deny",
                    path=planned.file.path,
                    message=f"its name is not wanted in {context.backend}",
                    allow="take its suffix off the list",
                    refused=not self.config.warn,
                )


class BytesPolicy(Policy):
    """Refuses files that begin with a word, whatever they are called."""

    type = "bytes"
    reads_content = True

    class Config(PluginConfig):
        word: str = Field(default="evil", description="The word")

    asked: list[str] = []

    def check_content(self, plan, content, context):
        self.asked.append(plan.model_id)
        found = []
        for file in content.files:
            with content.open(file.path) as opened:
                if opened.read(len(self.config.word)) == self.config.word.encode():
                    found.append(
                        Finding(
                            rule="bytes.word",
                            path=file.path,
                            message="it begins with the word",
                            allow="choose another word",
                        )
                    )
        return Checked(findings=tuple(found), facts={"looked_at": len(content.files)})


class Offers:
    """Several policies, as a plugin offers them."""

    def __init__(self, *policies):
        self._policies = policies

    @hookimpl
    def mm_policies(self):
        return list(self._policies)


class Storms:
    """A plugin whose policy raises `error` when it is asked for bytes."""

    def __init__(self, error):
        class Stormy(Policy):
            type = "stormy"
            reads_content = True

            def check_content(self, plan, content, context):
                raise error

        self._kind = Stormy

    @hookimpl
    def mm_policies(self):
        return [self._kind]


SETS = {"ours": {"names": {}, "bytes": {}}}


def manager_of(tmp_path, *plugins, policies=SETS, backends=None):
    backends = backends or {
        "lake": {"type": "local", "root": str(tmp_path / "lake"), "fsync": False},
        "dr": {"type": "memory", "root": f"memory://{tmp_path.name}"},
    }
    settings = load_settings(
        overrides={"defaults": {"backend": "lake"}, "backends": backends, "policies": policies}
    )
    offered = Offers(NamesPolicy, BytesPolicy)
    return ModelManager(settings, plugins=Plugins([*BUILT_IN, offered, *plugins]))


@pytest.fixture
def manager(tmp_path):
    BytesPolicy.asked.clear()
    with manager_of(tmp_path) as made:
        yield made


@pytest.fixture
def lenient(tmp_path):
    """A manager of the same backends, without any policy."""
    with manager_of(tmp_path, policies={}) as made:
        yield made


def make(path: Path, **files: bytes) -> Path:
    for name, data in files.items():
        target = path / name.replace("__", ".")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return path


@pytest.fixture
def good(tmp_path):
    return make(tmp_path / "good", config__json=b"{}", model__bin=LARGE)


@pytest.fixture
def evil(tmp_path):
    """By its bytes only, and not in every file."""
    return make(tmp_path / "evil", config__json=b"{}", model__bin=b"evil" + LARGE)


def keys(sink, prefix: str = "models/") -> list[str]:
    return [stored.key for stored in sink.list(prefix)]


def manifests(sink) -> list[str]:
    return keys(sink, ".mm/manifests/")


class TestThePlan:
    def test_all_that_is_found_is_told(self, manager, tmp_path):
        """Every file, the rule and its place, and how to allow it; as data, too."""
        files = {f"f{n:02}__pkl": b"1" for n in range(12)}
        bad = make(tmp_path / "bad", config__json=b"{}", **files)
        with pytest.raises(PolicyError) as caught:
            manager.push(bad, "m", version="1")
        lines = str(caught.value).splitlines()
        assert lines[0] == "m@1 may not enter lake:"
        assert lines[1] == (
            "  f00.pkl: its name is not wanted in lake (policies.ours.names.deny, --names flag); "
            "to allow it: take its suffix off the list"
        )
        assert (len(lines), lines[-1]) == (12, "  and 2 more")
        assert [found["path"] for found in caught.value.findings] == [
            f"f{n:02}.pkl" for n in range(12)
        ]
        assert caught.value.findings[0]["setting"] == "policies.ours.names.deny"

    def test_nothing_is_written(self, manager, tmp_path):
        """Neither a file nor a commit, and the bytes were not looked at."""
        bad = make(tmp_path / "bad", x__pkl=b"evil")
        with pytest.raises(PolicyError):
            manager.push(bad, "m")
        assert keys(manager.sink(), "") == []
        assert BytesPolicy.asked == []

    def test_the_dry_run_says_so(self, manager, tmp_path):
        """`plan` is refused as the pull would be."""
        with pytest.raises(PolicyError):
            manager.plan(str(make(tmp_path / "bad", x__pkl=b"1")), model_id="m")

    def test_what_is_only_warned_of_comes(self, tmp_path, caplog):
        """With a line in the log."""
        bad = make(tmp_path / "bad", x__pkl=b"1")
        with manager_of(tmp_path, policies={"ours": {"names": {"warn": True}}}) as manager:
            assert manager.push(bad, "m").entry.status is ModelStatus.AVAILABLE
        assert "m: x.pkl: its name is not wanted in lake" in caplog.text

    def test_a_version_that_is_there_is_asked_about_by_its_plan(self, manager, lenient, evil, good):
        """Its bytes came in once, and are not looked at again; its names are."""
        lenient.push(evil, "m", version="1")
        assert manager.push(evil, "m", version="1", aliases=["prod"]).entry.aliases == ("prod",)
        make(good, x__pkl=b"1")
        lenient.push(good, "n", version="1")
        with pytest.raises(PolicyError):
            manager.push(good, "n", version="1", aliases=["prod"])
        assert manager.registry().aliases("n") == {}


class TestTheBytes:
    @pytest.mark.parametrize("backend", ["lake", "dr"])
    def test_nothing_stays_behind(self, manager, evil, backend):
        """No file, no part of one, no file list; the version failed, and nobody is given it."""
        with pytest.raises(PolicyError, match=r"model\.bin: it begins with the word"):
            manager.push(evil, "org/m", version="1", to=backend)
        sink, entry = manager.sink(backend), manager.registry(backend).get_model("org/m", "1")
        assert (keys(sink), manifests(sink), list(sink.unfinished(""))) == ([], [], [])
        assert keys(sink, ".mm/claims/") == []
        assert entry.status is ModelStatus.FAILED
        with pytest.raises(NotFoundError):
            manager.get("org/m", backend=backend)
        if backend == "lake":
            assert not (Path(sink.root) / "models").exists()

    @pytest.mark.parametrize("backend", ["lake", "dr"])
    def test_what_earlier_attempts_left_goes_as_well(self, manager, evil, good, backend):
        """Whole files and parts; those of other versions stay."""
        kept = manager.push(good, "org/m", version="0", to=backend).entry
        sink = manager.sink(backend)
        sink.put("models/org/m/1/of-another-choice.bin", b"1")
        parts = sink.begin_upload("models/org/m/1/large.bin", size=40 << 20, identity="sha256:1")
        parts.write_part(0, memoryview(bytes(parts.part_size)))
        parts.keep()
        with pytest.raises(PolicyError):
            manager.push(evil, "org/m", version="1", to=backend)
        assert keys(sink) == ["models/org/m/0/config.json", "models/org/m/0/model.bin"]
        assert list(sink.unfinished("")) == []
        assert manager.verify(backend=backend).ok
        assert manager.registry(backend).resolve("org/m") == kept

    def test_a_copy_within_the_store_is_refused_without_its_original(self, manager, lenient, evil):
        """Equal bytes of another version are copied, looked at, and only the copy goes."""
        lenient.push(evil, "m", version="0")
        with pytest.raises(PolicyError):
            manager.push(evil, "m", version="1")
        assert keys(manager.sink()) == ["models/m/0/config.json", "models/m/0/model.bin"]
        assert manager.verify().ok

    def test_no_hint_leads_to_it(self, manager, lenient, evil):
        """Neither one of its own nor one of the time when it was there."""
        lenient.push(evil, "m", version="1")
        sha256 = lenient.registry().manifest(lenient.registry().resolve("m")).files[1].sha256
        assert lenient.registry().find_content(sha256) == "models/m/1/model.bin"
        lenient.remove("m")
        with pytest.raises(PolicyError):
            manager.push(evil, "m", version="1")
        assert manager.registry().find_content(sha256) is None
        assert keys(manager.sink()) == []

    def test_what_is_let_in_is_noted(self, manager, good):
        """Under the policy's type, in the manifest, which anybody reads back."""
        entry = manager.push(good, "m").entry
        manifest = manager.registry().manifest(entry)
        assert manifest.checks == {"bytes": {"looked_at": 2}}
        assert Manifest.from_bytes(manifest.to_bytes()).checks == manifest.checks

    def test_a_hook_that_refuses_leaves_nothing_either(self, tmp_path, good):
        """A plugin without a policy is heard as one."""

        class Scanner:
            @hookimpl
            def mm_file_stored(self, file):
                raise PolicyError("not this one")

        with manager_of(tmp_path, Scanner(), policies={}) as manager:
            with pytest.raises(PolicyError, match="not this one"):
                manager.push(good, "m")
            assert keys(manager.sink()) == []

    def test_the_history_has_it_on_one_line(self, manager, evil):
        """Why the version failed can be read later."""
        with pytest.raises(PolicyError):
            manager.push(evil, "m", version="1")
        (reason,) = [
            item["reason"]
            for commit in manager.registry().history("m")
            for item in commit.operations
            if item["op"] == "abandon"
        ]
        assert reason == "m@1 may not enter lake:"

    def test_whoever_waits_is_refused_in_turn(self, tmp_path, evil):
        """It is offered nothing of the first, and leaves nothing of its own."""
        here, both = threading.Event(), threading.Barrier(2, timeout=30)
        ends: list[str] = []

        class Slow(BytesPolicy):
            type = "bytes"

            def check_content(self, plan, content, context):
                here.set()
                waiting.wait(30)
                return super().check_content(plan, content, context)

        waiting = threading.Event()

        def pull(manager):
            if not here.is_set():
                both.wait()
            try:
                manager.push(evil, "m", version="1")
            except PolicyError:
                ends.append("refused")

        def heard(event):
            if event.kind == "waiting":
                waiting.set()

        backends = {"lake": {"type": "memory", "root": f"memory://{tmp_path.name}"}}
        settings = load_settings(overrides={"backends": backends, "policies": {"a": {"bytes": {}}}})
        plugins = [Plugins([*BUILT_IN, Offers(Slow)]) for _ in range(2)]
        managers = [ModelManager(settings, plugins=p, on_event=heard) for p in plugins]
        threads = [threading.Thread(target=pull, args=(manager,)) for manager in managers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert ends == ["refused"] * 2
        assert waiting.is_set()
        assert keys(managers[0].sink()) == []
        for manager in managers:
            manager.close()

    def test_who_is_stopped_reads_no_further(self, tmp_path, good):
        """A long look at the bytes ends when the pull is cancelled."""
        stop = threading.Event()

        class Endless(Policy):
            type = "endless"
            reads_content = True

            def check_content(self, plan, content, context):
                stop.set()
                content.open("model.bin").read()
                return Checked()

        sets = {"a": {"endless": {}}}
        with (
            manager_of(tmp_path, Offers(Endless), policies=sets) as manager,
            pytest.raises(CancelledError),
        ):
            manager.pull(str(good), model_id="m", cancelled=stop)

    def test_a_policy_that_cannot_tell_has_failed(self, tmp_path, good):
        """A fault in its code refuses the model, and says so."""
        storm = Storms(ZeroDivisionError("oh"))
        with manager_of(tmp_path, storm, policies={"a": {"stormy": {}}}) as manager:
            with pytest.raises(PolicyError, match=r"cannot tell .*: ZeroDivisionError: oh"):
                manager.push(good, "m")
            assert keys(manager.sink()) == []

    def test_facts_that_cannot_be_kept_are_a_fault(self, tmp_path, good):
        """The manifest is JSON."""

        class Odd(Policy):
            type = "odd"
            reads_content = True

            def check_content(self, plan, content, context):
                return Checked(facts={"odd": object()})

        with (
            manager_of(tmp_path, Offers(Odd), policies={"a": {"odd": {}}}) as manager,
            pytest.raises(PolicyError, match="cannot tell"),
        ):
            manager.push(good, "m")

    def test_a_store_that_fails_refuses_nothing(self, tmp_path, good):
        """What is stored is found again by the next attempt."""
        storm = Storms(TransientError("the store is gone"))
        with manager_of(tmp_path, storm, policies={"a": {"stormy": {}}}) as manager:
            with pytest.raises(TransientError):
                manager.push(good, "m", version="1")
            assert len(keys(manager.sink())) == 2
        with manager_of(tmp_path) as manager:
            pulled = manager.push(good, "m", version="1")
            assert (pulled.fetched_bytes, pulled.present_bytes) == (0, len(LARGE) + 2)


class TestTheDeletion:
    def test_an_heir_keeps_what_it_has(self, tmp_path):
        """Whoever was taken over deletes nothing, whatever its clock says."""
        with manager_of(tmp_path, policies={}) as manager:
            registry, sink = manager.registry(), manager.sink()
            claim = registry.begin("m", "1")
            registry.abandon(claim, "taken over")
            sink.put("models/m/1/of-the-heir", b"1")
            with pytest.raises(PolicyError) as caught, claiming.gone_if_refused(registry, claim):
                raise PolicyError("no")
            assert keys(sink) == ["models/m/1/of-the-heir"]
            assert "taken the version over" in caught.value.hint

    def test_a_passing_fault_of_the_store_is_overcome(self, tmp_path, evil, monkeypatch):
        """It is asked again."""
        faults = [TransientError("not now")] * 3

        class Flaky(memory.MemorySink):
            type = "flaky"

            def delete(self, keys):
                keys = list(keys)
                if faults and keys[0].startswith("models/"):
                    raise faults.pop()
                super().delete(keys)

        with with_sink(tmp_path, Flaky) as manager:
            with pytest.raises(PolicyError):
                manager.push(evil, "m")
            assert (faults, keys(manager.sink())) == ([], [])

    def test_a_store_that_deletes_nothing_is_told_of(self, tmp_path, evil, monkeypatch):
        """The model is refused all the same; the next attempt deletes what is left."""
        monkeypatch.setattr(claiming, "PATIENCE", 0.1)
        stuck = threading.Event()
        stuck.set()

        class Stuck(memory.MemorySink):
            type = "stuck"

            def delete(self, keys):
                keys = list(keys)
                if stuck.is_set() and keys[0].startswith("models/"):
                    raise TransientError("read-only just now")
                super().delete(keys)

        with with_sink(tmp_path, Stuck) as manager:
            with pytest.raises(PolicyError, match="it begins with the word") as caught:
                manager.push(evil, "m", version="1")
            assert "could not be deleted: read-only just now" in caught.value.hint
            assert len(keys(manager.sink())) == 2
            with pytest.raises(NotFoundError):
                manager.get("m")
            stuck.clear()
            with pytest.raises(PolicyError):
                manager.push(evil, "m", version="1")
            assert keys(manager.sink()) == []

    def test_killed_in_the_middle_the_next_is_refused_and_ends_it(self, tmp_path, evil):
        """A process that dies after the first deletion: what is left is never offered, and goes."""
        script = textwrap.dedent(f"""
            import os, signal, sys
            sys.path.insert(0, {str(Path(__file__).parent)!r})
            from pathlib import Path
            from test_policing import manager_of, memory, local
            from mm_core import hookimpl

            class Dying(local.LocalSink):
                type = "dying"

                def delete(self, keys):
                    keys = list(keys)
                    if keys[0].startswith("models/"):
                        super().delete(keys[:1])
                        os.kill(os.getpid(), signal.SIGKILL)
                    super().delete(keys)

            class Offer:
                @hookimpl
                def mm_sinks(self):
                    return [Dying]

            backends = {{"lake": {{"type": "dying", "root": {str(tmp_path / "lake")!r}}}}}
            manager = manager_of(Path({str(tmp_path)!r}), Offer(), backends=backends)
            manager.push({str(evil)!r}, "m", version="1")
        """)
        died = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
        assert died.returncode == -signal.SIGKILL, died.stderr.decode()
        with manager_of(tmp_path) as manager:
            assert keys(manager.sink()) == ["models/m/1/model.bin"]
            with pytest.raises(NotFoundError):
                manager.get("m")
            with pytest.raises(PolicyError):
                manager.push(evil, "m", version="1")
            assert keys(manager.sink()) == []
            assert manager.registry().get_model("m", "1").status is ModelStatus.FAILED


def with_sink(tmp_path, kind):
    class Offer:
        @hookimpl
        def mm_sinks(self):
            return [kind]

    backends = {"lake": {"type": kind.type, "root": f"memory://{tmp_path.name}"}}
    return manager_of(tmp_path, Offer(), backends=backends)


class TestEveryWayIn:
    def test_what_is_adopted_in_place_stays_as_it_is(self, manager, lenient, tmp_path):
        """It is somebody's: refused without a trace in the registry, and never deleted."""
        for place, how in (("old/m", {}), ("models/m/1", {})):
            mine = make(tmp_path / "lake" / place, model__bin=b"evil")
            (one,) = manager.adopt(str(mine), **how).models
            assert isinstance(one.error, PolicyError)
            assert (mine / "model.bin").read_bytes() == b"evil"
        assert manager.list_models(include_deleted=True) == []
        (one,) = lenient.adopt(str(tmp_path / "lake/old/m")).models
        assert one.error is None

    def test_a_shared_folder_keeps_its_bytes(self, manager, evil):
        """Adopted under a second name on the same disk: only that name goes."""
        (one,) = manager.adopt(str(evil)).models
        assert isinstance(one.error, PolicyError)
        assert (evil / "model.bin").stat().st_nlink == 1
        assert keys(manager.sink()) == []

    def test_copies_are_refused_one_by_one(self, manager, lenient, evil, good):
        """The good one comes, the other is told of, and its original stays."""
        lenient.push(good, "good", version="1", to="dr")
        lenient.push(evil, "evil", version="1", to="dr")
        done = manager.replicate(source="dr", to="lake")
        assert {one.model_id: one.outcome for one in done.versions} == {
            "good": Outcome.COPIED,
            "evil": Outcome.FAILED,
        }
        assert [type(error) for error in done.failed.values()] == [PolicyError]
        assert all("\n" not in (one.reason or "") for one in done.versions)
        assert keys(manager.sink()) == ["models/good/1/config.json", "models/good/1/model.bin"]
        assert manager.verify(backend="dr").ok

    def test_the_word_of_another_registry_is_not_taken_over(self, manager, lenient, good):
        """A copy has the checks of its own backend, and none where nobody checked."""
        checked = manager.push(good, "m", version="1", to="dr").entry
        assert manager.registry("dr").manifest(checked).checks
        lenient.copy("m", source="dr", to="lake")
        registry = lenient.registry()
        assert registry.manifest(registry.resolve("m")).checks == {}

    def test_an_address_in_another_backend_is_a_source_like_any_other(self, manager, lenient, evil):
        """`mm://` is no way round."""
        lenient.push(evil, "m", version="1", to="dr")
        with pytest.raises(PolicyError):
            manager.pull("mm://dr/m@1")
        assert keys(manager.sink()) == []

    def test_a_repair_asks_like_a_pull(self, manager, lenient, tmp_path):
        """What is refused by now does not come again; the version stays as it is, and is named."""
        bad = make(tmp_path / "bad", config__json=b"{}", x__pkl=b"1")
        path = lenient.push(bad, "m", version="1").entry.path
        (path / "x.pkl").unlink()
        report = manager.verify(repair=True)
        assert [bad.path for bad in report.bad] == ["x.pkl"]
        assert "its name is not wanted" in report.bad[0].reason
        assert (path / "config.json").exists()
        assert lenient.verify(repair=True).ok


class TestWhereRulesHold:
    def test_a_set_holds_for_the_backends_that_it_names(self, tmp_path, evil):
        """By name, and also where one is given by its URL or path."""
        sets = {"ours": {"backends": ["lake"], "bytes": {}}}
        with manager_of(tmp_path, policies=sets) as manager:
            manager.push(evil, "m", to="dr")
            for name in ("lake", str(tmp_path / "lake"), f"{tmp_path}/x/../lake/"):
                with pytest.raises(PolicyError):
                    manager.push(evil, "m", to=name)
            manager.push(evil, "m", to=str(tmp_path / "elsewhere"))

    def test_several_sets_all_hold(self, tmp_path, evil):
        """What one lets in another may refuse; both are told."""
        sets = {"a": {"bytes": {"word": "good"}}, "b": {"bytes": {}}, "c": {"bytes": {}}}
        with (
            manager_of(tmp_path, policies=sets) as manager,
            pytest.raises(PolicyError) as caught,
        ):
            manager.push(evil, "m")
        assert [found["setting"] for found in caught.value.findings] == [
            "policies.b.bytes.word",
            "policies.c.bytes.word",
        ]

    def test_a_backend_that_is_not_there_is_an_error(self, tmp_path):
        """A slip of the pen must not switch the rules off."""
        with pytest.raises(ConfigError, match=r"no backend named 'lkae'; did you mean 'lake'"):
            manager_of(tmp_path, policies={"ours": {"backends": ["lkae"], "names": {}}})

    @pytest.mark.parametrize("slip", [{"nmaes": {}}, {"names": {"dney": []}}])
    def test_what_cannot_be_understood_lets_nothing_in(self, tmp_path, good, slip):
        """An unknown policy or setting stops every pull, and names what was meant."""
        with (
            manager_of(tmp_path, policies={"ours": slip}) as manager,
            pytest.raises(UsageError, match="did you mean"),
        ):
            manager.push(good, "m")

    def test_the_rules_of_a_backend_can_be_listed(self, tmp_path):
        """With their settings and places; secrets are not shown."""
        sets = {
            "ours": {"names": {"deny": ["bin"], "pin": "pin-123456"}},
            "far": {"backends": ["dr"], "bytes": {}},
        }
        with manager_of(tmp_path, policies=sets) as manager:
            assert [rule.setting for rule in manager.policies()] == ["policies.ours.names"]
            rules = [rule.to_json() for rule in manager.policies(backend="dr")]
        assert rules == [
            {
                "set": "ours",
                "policy": "names",
                "settings": {"deny": ["bin"], "pin": "***"},
                "backends": None,
                "where": "--deny flag",
            },
            {
                "set": "far",
                "policy": "bytes",
                "settings": {},
                "backends": ["dr"],
                "where": "--bytes flag",
            },
        ]


class Formats(NamesPolicy):
    """Stands in for one of the types of the built-in set."""

    type = "formats"


class TestTheBuiltInSet:
    def test_it_holds_where_no_file_says_otherwise(self, tmp_path):
        """Also beside sets of other names."""
        bad = make(tmp_path / "bad", x__pkl=b"1")
        for sets in ({}, {"ours": {"bytes": {}}}):
            with (
                manager_of(tmp_path, Offers(Formats), policies=sets) as manager,
                pytest.raises(
                    PolicyError, match=r"policies\.default\.formats\.names\.deny, built in"
                ),
            ):
                manager.push(bad, "m")

    @pytest.mark.parametrize("sets", [{"default": {}}, {"default": {"names": {"deny": ["x"]}}}])
    def test_a_set_of_its_name_takes_its_place(self, tmp_path, sets):
        """An empty one lets everything in."""
        bad = make(tmp_path / "bad", x__pkl=b"1")
        with manager_of(tmp_path, Offers(Formats), policies=sets) as manager:
            assert manager.push(bad, "m").entry.status is ModelStatus.AVAILABLE

    def test_a_broken_policy_of_it_lets_nothing_in(self, tmp_path, good):
        """What cannot be asked is missed; what is not installed is not."""
        broken = type("formats", (), {"mm_policies": hookimpl(lambda self: 1 / 0)})()
        with (
            manager_of(tmp_path, broken, policies={}) as manager,
            pytest.raises(PluginError, match="ZeroDivisionError"),
        ):
            manager.push(good, "m")


class TestTheVerdict:
    def test_it_tells_what_a_pull_would_meet(self, manager, evil):
        """By the plan and by the bytes at the source; nothing is written."""
        make(evil, x__pkl=b"1")
        verdict = manager.check_policies(str(evil), model_id="m")
        assert not verdict.ok
        assert [(r.setting, r.finding.path) for r in verdict.rulings] == [
            ("policies.ours.names.deny", "x.pkl"),
            ("policies.ours.bytes.word", "model.bin"),
        ]
        assert keys(manager.sink(), "") == []

    def test_it_can_do_without_the_bytes(self, manager, evil, good):
        """Then only names, sizes and facts count."""
        assert manager.check_policies(str(evil), content=False).ok
        assert manager.check_policies(str(good)).checks == {"bytes": {"looked_at": 2}}

    def test_a_plugin_that_refuses_plans_is_heard(self, tmp_path, good):
        """Its words stand among the others."""

        class Guard:
            @hookimpl
            def mm_plan_made(self, plan):
                raise PolicyError("not on Sundays", hint="come on Monday")

        with manager_of(tmp_path, Guard()) as manager:
            (ruling,) = manager.check_policies(str(good)).rulings
        assert (ruling.finding.message, ruling.finding.allow) == (
            "not on Sundays",
            "come on Monday",
        )


def test_words_of_strangers_steer_no_terminal(tmp_path):
    """Control characters in what a source says never reach the message."""

    class Loud(Policy):
        type = "loud"

        def check_plan(self, plan, context):
            return [Finding(rule="loud", message="a\x1b[2Jb\nc", allow="d")]

    with (
        manager_of(tmp_path, Offers(Loud), policies={"a": {"loud": {}}}) as manager,
        pytest.raises(PolicyError) as caught,
    ):
        manager.push(make(tmp_path / "m", x=b"1"), "m")
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2
