"""Settings that are remembered: what a short command may take from an earlier run, and what not."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from mm_core import ModelEntry, ModelRegistry, Plugins
from mm_core.cli import main
from mm_core.config import load_settings
from mm_core.folders import name_of_store
from mm_core.place import Places
from mm_core.recall import Memory
from mm_plugins.sinks.local import LocalSink

pytestmark = pytest.mark.unit

YAML = """version: 1
defaults: {backend: one, claim_timeout: 5m}
backends:
  one: {type: local, root: ./one, fsync: false}
  two: {type: local, root: ./two}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with an mm.yaml, in which the commands run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mm.yaml").write_text(YAML)
    return tmp_path


def memory(backend: str | None = None, file: Path | None = None, **overrides) -> Memory:
    return Memory(
        file=file, backend=backend, overrides=overrides, environ=os.environ, cwd=Path.cwd()
    )


def run(backend: str | None = None, **options) -> None:
    """What the first run does: read the settings, open the backend, and remember."""
    made = memory(backend, **options)
    settings = load_settings()
    places = Places(settings, Plugins.discover(), None)
    made.note(settings, places.open(backend))


def kept(tmp_path_factory=None) -> list[Path]:
    return sorted(Path(os.environ["XDG_CACHE_HOME"]).rglob("settings/*"))


def test_what_is_remembered_opens_the_same_backend(folder):
    """The same sink, with the same settings, and a registry with the same patience."""
    assert memory().recall() is None
    run()
    place = memory().recall()
    opened = Places(load_settings(), Plugins.discover(), None).open(None)
    assert type(place.sink) is LocalSink
    assert (place.name, place.sink.root) == (opened.name, str(folder / "one"))
    assert place.sink.config.fsync is opened.sink.config.fsync is False
    assert place.registry._claim_timeout == opened.registry._claim_timeout == 300
    run("two")
    assert memory("two").recall().sink.root == str(folder / "two")
    assert memory().recall().sink.root == str(folder / "one")


LAKE = "backends: {lake: {type: s3, root: 's3://b/p', options: {profile: ml, anon: true}}}"


def test_an_s3_backend_is_opened_the_same(folder):
    """Its settings have the same attributes and say the same; both are one way to the store."""
    (folder / "mm.local.yaml").write_text(LAKE)
    run("lake")
    plain = memory("lake").recall().sink
    opened = Places(load_settings(), Plugins.discover(), None).open("lake").sink
    assert type(plain.config) is not type(opened.config)
    assert plain.root == opened.root == "s3://b/p"
    assert name_of_store(plain) == name_of_store(opened)
    for name in type(opened.config.options).model_fields:
        assert getattr(plain.config.options, name) == getattr(opened.config.options, name)
    assert plain.copies_from(opened)
    assert opened.copies_from(plain)


def test_what_dotenv_tells_the_sdk_is_told_each_time(folder):
    """Else the second run would ask S3 as somebody else."""
    (folder / "mm.local.yaml").write_text(LAKE)
    (folder / ".env").write_text("AWS_PROFILE=ml\n")
    try:
        run("lake")
        assert kept() == []
        os.environ.pop("AWS_PROFILE")
        run("one")
        assert len(kept()) == 1
    finally:
        os.environ.pop("AWS_PROFILE", None)


def test_it_is_for_this_user_alone(folder):
    """The files are readable by their owner only, and one that others can write is not believed."""
    run()
    (path,) = kept()
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o666)
    assert memory().recall() is None


def test_a_relative_root_is_that_of_its_folder(tmp_path, monkeypatch):
    """Without a file, ./x in two folders is two backends."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert memory("./x").recall() is None
        run("./x")
        assert memory("./x").recall().sink.root == str(tmp_path / name / "x")


CHANGES = {
    "the file": lambda f, m: (f / "mm.yaml").write_text(YAML.replace("./one", "./other")),
    "a comment in the file": lambda f, m: (f / "mm.yaml").write_text(f"# new\n{YAML}"),
    "a local file": lambda f, m: (f / "mm.local.yaml").write_text(
        "backends: {one: {root: ./other}}"
    ),
    "a .env": lambda f, m: (f / ".env").write_text("MM_DEFAULTS__BACKEND=two\n"),
    "the user's file": lambda f, m: _user_file().write_text("defaults: {jobs: 3}"),
    "a variable": lambda f, m: m.setenv("MM_BACKENDS__ONE__ROOT", str(f / "other")),
    "a variable with other signs in its name": lambda f, m: m.setenv(
        "MM_BACKENDS__MY-ONE__ROOT", str(f / "other")
    ),
    "another file that is named": lambda f, m: m.setenv("MM_CONFIG", str(_copy(f))),
    "a plugin that is left out": lambda f, m: m.setenv("MM_DISABLE_PLUGINS", "local"),
    "a folder of packages": lambda f, m: m.syspath_prepend(str(f)),
    "a package that was installed": lambda f, m: _install(f, "new"),
    "a package that was installed again": lambda f, m: os.utime(
        f / "packages" / "old-1.0.dist-info", ns=(2, 2)
    ),
    "no cache": lambda f, m: m.setenv("MM_CACHE", "off"),
}


def _user_file() -> Path:
    path = Path(os.environ["XDG_CONFIG_HOME"]) / "model-manager" / "mm.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _copy(folder: Path) -> Path:
    (folder / "sub").mkdir()
    (folder / "sub" / "mm.yaml").write_text(YAML)
    return folder / "sub" / "mm.yaml"


def _install(folder: Path, name: str) -> None:
    (folder / "packages" / f"{name}-1.0.dist-info").mkdir()


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_decides_and_changes_is_read_anew(folder, monkeypatch, change):
    """Files, variables, flags, installed packages: another value, and nothing is taken from memory."""
    (folder / "packages").mkdir()
    monkeypatch.syspath_prepend(str(folder / "packages"))
    (folder / "packages" / "old-1.0.dist-info").mkdir()
    os.utime(folder / "packages" / "old-1.0.dist-info", ns=(1, 1))
    run()
    assert memory().recall() is not None
    CHANGES[change](folder, monkeypatch)
    assert memory().recall() is None


def test_what_decides_nothing_does_not_count(folder, monkeypatch):
    """Other files in a folder of packages, or in the working folder, and other variables."""
    monkeypatch.syspath_prepend(str(folder))
    run()
    (folder / "module.py").write_text("")
    monkeypatch.setenv("TERM_PROGRAM", "another")
    assert memory().recall() is not None


def test_a_nearer_file_counts(folder, monkeypatch):
    """An mm.yaml that appears in a folder on the way up decides from then on."""
    inner = folder / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    run()
    assert memory().recall() is not None
    (folder / "a" / "mm.yaml").write_text(YAML)
    assert memory().recall() is None


def test_flags_count(folder):
    """What flags set for one run is not what another run finds."""
    run()
    assert memory(**{"defaults.offline": True}).recall() is None


def test_a_variable_that_a_file_names_counts(folder, monkeypatch):
    """A setting elsewhere in the file may come from a variable: it is looked at each time."""
    monkeypatch.setenv("SOME_TOKEN", "hunter2hunter2")
    (folder / "mm.yaml").write_text(
        f"{YAML}sources:\n  hf: {{type: huggingface, token: '${{SOME_TOKEN}}'}}\n"
    )
    run()
    assert memory().recall() is not None
    assert not any("hunter2" in path.read_text() for path in kept())
    monkeypatch.delenv("SOME_TOKEN")
    assert memory().recall() is None
    assert main(["list"]) == 2


SECRETS = {
    "a root from a variable": "backends: {one: {root: '${ROOT}'}}",
    "a part of a root from a variable": "backends: {one: {root: './x/${ROOT:-y}'}}",
    "a default from a variable": "defaults: {writer: '${ROOT}'}",
    "a value from a file": "backends: {two: {root: '${file:root.txt}'}}",
    "a root that looks like a secret": "backends: {one: {root: ./hf_abcdefghijklmnopqrstu}}",
    "keys that are trusted": "registry: {trusted_keys: [" + "A" * 43 + "=]}",
    "a key that signs": "registry: {signing_key: ./key.pem}",
    "an option that may hold anything": "backends: {one: {type: s3, root: 's3://b/p', options: "
    "{s3_additional_kwargs: {SSECustomerKey: x}}}}",
    "a secret in plain text elsewhere": "sources: {hf: {type: huggingface, token: "
    "hf_abcdefghijklmnopqrstu}}",
    "a writer that looks like a secret": "defaults: {writer: ghp_abcdefghijklmnopqrstuvwxyz}",
}


@pytest.mark.parametrize("secret", SECRETS)
def test_what_may_be_secret_is_never_kept(folder, monkeypatch, secret):
    """Nothing is written, and the next run reads (and warns) as the first."""
    monkeypatch.setenv("ROOT", "./from-a-variable")
    (folder / "root.txt").write_text("./from-a-file")
    (folder / "mm.local.yaml").write_text(SECRETS[secret])
    run()
    assert kept() == []
    assert memory().recall() is None


def test_a_secret_in_plain_text_is_warned_about_each_time(folder, capfd):
    """A remembered setting must not silence the warning."""
    (folder / "mm.local.yaml").write_text(SECRETS["a secret in plain text elsewhere"])
    for _ in range(3):
        main(["list"])
        assert "secret in plain text" in capfd.readouterr().err


def test_an_option_that_only_sounds_secret_is_not_kept():
    """Not the value decides alone: whatever a setting called so holds stays out."""
    from mm_core.recall import _packed

    for name in ("password", "api_key", "token"):
        with pytest.raises(ValueError, match="secret"):
            _packed(name, "monkey")
    for value in (object(), {"anything": "x"}):
        with pytest.raises(ValueError, match="no plain value"):
            _packed("verifier", value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff{"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text("{}"),
        lambda path: _changed(path, sink="os:system"),
        lambda path: _changed(path, sink="mm_plugins.sinks.local:_link"),
        lambda path: _changed(path, sink="mm_plugins.sinks.memory:MemorySink"),
        lambda path: _changed(path, sink="no_such_module:Sink"),
        lambda path: _changed(path, config={"fields": {}}),
        lambda path: _changed(path, options={"unknown": 1}),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_a_damaged_memory_is_no_error(folder, damage, capfd):
    """Whatever stands there, the command does what it does without a memory."""
    ModelRegistry(LocalSink(LocalSink.Config(root=str(folder / "one")))).add_model(
        ModelEntry(model_id="m", version="1", path="/x")
    )
    assert main(["list", "-q"]) == 0
    (path,) = kept()
    damage(path)
    capfd.readouterr()
    assert main(["list", "-q"]) == 0
    assert capfd.readouterr() == ("m@1\n", "")


def _changed(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    path.chmod(0o600)


def test_a_cache_folder_that_cannot_be_written_is_no_error(folder, monkeypatch):
    """A file where the folder should be: nothing is remembered, and all works."""
    (folder / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "file"))
    assert main(["list", "-q"]) == 0
    assert main(["list", "-q"]) == 0


def test_only_so_many_places_are_kept(folder, monkeypatch):
    """Runs in ever new folders do not fill the disk."""
    from mm_core import recall

    monkeypatch.setattr(recall, "_KEPT", 3)
    for number in range(6):
        run(f"./{number}")
    assert len(kept()) == 3
    assert memory("./5").recall() is not None


def test_files_that_change_meanwhile_leave_no_false_memory(folder):
    """What was read after a change is not kept under what was there before it."""
    made = memory()
    (folder / "mm.yaml").write_text(YAML.replace("./one", "./other"))
    settings = load_settings()
    made.note(settings, Places(settings, Plugins.discover(), None).open(None))
    (folder / "mm.yaml").write_text(YAML)
    assert memory().recall() is None


def test_a_sink_must_say_that_plain_settings_will_do(folder):
    """A sink that may call methods of its settings always gets a validated Config."""

    class Strict(LocalSink):
        plain_config = False

    made, settings = memory(), load_settings()
    place = Places(settings, Plugins.discover(), None).open(None)
    from dataclasses import replace

    strict = Strict(Strict.Config(root=place.sink.root))
    made.note(settings, replace(place, sink=strict))
    assert kept() == []


def test_mistakes_are_told_with_and_without_memory(folder, capfd):
    """A backend that is not there, and broken YAML, are errors also after a good run."""
    assert main(["list"]) == 0
    assert main(["list", "--backend", "three"]) == 2
    (folder / "mm.yaml").write_text("backends: [")
    assert main(["list"]) == 2
    assert "mm.yaml:1" in capfd.readouterr().err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the folders of Linux")
def test_the_folders_are_those_of_platformdirs(monkeypatch):
    """Where platformdirs is not asked, its answers are known."""
    import platformdirs

    from mm_core.config import locations

    for name in ("XDG_CONFIG_HOME", "XDG_CONFIG_DIRS", "XDG_DATA_HOME", "XDG_CACHE_HOME",
                 "XDG_STATE_HOME"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    site, user = locations.shared_files({})
    assert site.parent == platformdirs.site_config_path("model-manager", appauthor=False)
    assert user.parent == platformdirs.user_config_path("model-manager", appauthor=False)
    assert locations.data_folder({}) == platformdirs.user_data_path("model-manager")
    assert locations.cache_folder({}) == platformdirs.user_cache_path("model-manager")
    assert locations.state_folder({}) == platformdirs.user_state_path("model-manager")
