"""mm.yaml, the environment and flags become settings that know where they come from."""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, SecretStr

from mm_core import ConfigError, PluginConfig, Plugins, Sink, Source, hookimpl, redact, redaction
from mm_core.config import (
    Defaults,
    Settings,
    build_config,
    json_schema,
    load_settings,
    parse_duration,
    parse_rate,
    parse_size,
    starter,
    validate,
)

pytestmark = pytest.mark.unit

DESIGN = """\
# yaml-language-server: $schema=./mm.schema.json
version: 1
defaults: {backend: lake, jobs: 8}
backends:
  dev:  {type: local, root: ./models}
  lake: {type: s3, root: s3://ml-models/prod, options: {endpoint_url: "${S3_ENDPOINT:-}", profile: ml}}
  dr:   {type: gcs, root: gs://ml-models-dr, options: {project: acme}}
  misc: {type: fsspec, root: "abfs://models@acct"}
sources:
  hf:     {type: huggingface, token: "${HF_TOKEN:-}"}
  vendor: {type: url, allow_hosts: [dl.vendor.example], headers: {Authorization: "Bearer ${VENDOR_KEY}"}}
policies:
  default: {formats: {allow: ["*.safetensors", "*.json"]}, licenses: {allow: [apache-2.0, mit]}, limits: {max_size: 200GiB}}
models:
  embed/minilm: {source: "hf://sentence-transformers/all-MiniLM-L6-v2", revision: "c9745ed1d9f2", include: ["*.json", "model.safetensors"], to: [lake, dr], aliases: [prod]}
retention: {keep_last: 3, keep_aliases: [prod], grace: 24h}
"""


@pytest.fixture(autouse=True)
def own_memory(monkeypatch):
    """What these tests remember as secret must not mask the words of other tests."""
    monkeypatch.setattr(redaction, "_remembered", redaction._Remembered())


class World:
    """A folder with a project in it, and an environment."""

    def __init__(self, folder: Path) -> None:
        self.cwd = folder / "project"
        self.cwd.mkdir()
        self.folder = folder
        self.environ = {
            "XDG_CONFIG_HOME": str(folder / "user"),
            "XDG_CONFIG_DIRS": f"{folder / 'site1'}:{folder / 'site2'}",
            "XDG_DATA_HOME": str(folder / "data"),
        }

    def write(self, text: str, name: str = "project/mm.yaml") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def load(self, text: str | None = None, *, cwd: Path | None = None, **options: Any) -> Settings:
        if text is not None:
            self.write(text)
        return load_settings(environ=self.environ, cwd=cwd or self.cwd, **options)

    def error(self, text: str, **options: Any) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            self.load(text, **options)
        return caught.value


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


class TestLayers:
    def test_without_any_file_there_is_a_local_backend(self, world):
        """Nothing to write before the first pull: models go to the user's data folder."""
        settings = world.load()
        assert settings.defaults.backend == "local"
        assert settings.backends["local"].type == "local"
        root = settings.backends["local"].values["root"]
        assert root == str(world.folder / "data" / "model-manager")
        assert (settings.defaults.jobs, settings.files) == (8, ())
        assert settings.origin("backends.local.root") == "default"

    def test_the_example_of_the_design_is_read(self, world):
        """All sections are understood; sizes are bytes, times are seconds."""
        world.environ["VENDOR_KEY"] = "v-key-123456"
        settings = world.load(DESIGN)
        assert settings.backends["lake"].values == {
            "root": "s3://ml-models/prod",
            "options": {"profile": "ml"},
        }
        assert settings.sources["vendor"].values["headers"] == {
            "Authorization": "Bearer v-key-123456"
        }
        assert settings.policies["default"]["limits"] == {"max_size": "200GiB"}
        assert validate(settings, Plugins.discover()) == []
        assert settings.models["embed/minilm"]["to"] == ["lake", "dr"]
        assert settings.retention == {"keep_last": 3, "keep_aliases": ["prod"], "grace": 86400.0}

    def test_each_layer_is_stronger_than_the_one_below(self, world):
        """system < user < project < local < .env < environment < flag, each named as origin."""
        jobs = "defaults: {{jobs: {}}}\n"
        world.write(jobs.format(1), "site2/model-manager/mm.yaml")
        steps = [
            (lambda: world.write(jobs.format(2), "site1/model-manager/mm.yaml"), 2, "site1"),
            (lambda: world.write(jobs.format(3), "user/model-manager/mm.yaml"), 3, "user"),
            (lambda: world.write(jobs.format(4)), 4, "mm.yaml:1"),
            (lambda: world.write(jobs.format(5), "project/mm.local.yaml"), 5, "mm.local.yaml:1"),
            (lambda: world.write("MM_DEFAULTS__JOBS=6\n", "project/.env"), 6, "MM_DEFAULTS__JOBS"),
            (lambda: world.environ.update(MM_DEFAULTS__JOBS="7"), 7, "MM_DEFAULTS__JOBS"),
        ]
        assert world.load().defaults.jobs == 1
        for add, expected, origin in steps:
            add()
            settings = world.load()
            assert settings.defaults.jobs == expected
            assert origin in settings.origin("defaults.jobs")
        flagged = world.load(overrides={"defaults.jobs": 9, "defaults.backend": None})
        assert flagged.defaults.jobs == 9
        assert flagged.origin("defaults.jobs") == "--jobs flag"
        assert [p.parent.name for p in flagged.files] == ["model-manager"] * 3 + ["project"] * 2

    def test_mappings_are_merged_and_a_changed_type_replaces(self, world):
        """One key of a backend can be changed; another type starts afresh."""
        world.write("backends: {a: {type: local, root: /x, fsync: false}}")
        world.write("backends: {a: {root: /y}}", "project/mm.local.yaml")
        assert world.load().backends["a"].values == {"root": "/y", "fsync": False}
        world.write("backends: {a: {type: memory}}", "project/mm.local.yaml")
        settings = world.load()
        assert (settings.backends["a"].type, settings.backends["a"].values) == ("memory", {})
        assert settings.origin("backends.a.root") is None

    def test_the_file_is_found_upward_and_roots_are_relative_to_it(self, world):
        """Work goes on in a subfolder as at the top."""
        world.write("backends: {a: {type: local, root: ./m}, b: {type: x, root: ../m}}")
        below = world.cwd / "deep" / "er"
        below.mkdir(parents=True)
        settings = world.load(cwd=below)
        assert settings.backends["a"].values["root"] == str(world.cwd / "m")
        assert settings.backends["b"].values["root"] == str(world.folder / "m")
        assert settings.origin("backends.a.root") == f"{world.cwd / 'mm.yaml'}:1"

    def test_a_named_file_stands_in_for_the_projects(self, world):
        """--config and MM_CONFIG name the file; the flag is stronger; its .local is beside it."""
        world.write("defaults: {jobs: 1}")
        flag = world.write("defaults: {jobs: 2}", "etc/prod.yaml")
        world.environ["MM_CONFIG"] = str(world.write("defaults: {jobs: 3}", "etc/env.yaml"))
        assert world.load().defaults.jobs == 3
        assert world.load(file=flag).defaults.jobs == 2
        world.write("defaults: {jobs: 4}", "etc/prod.local.yaml")
        assert world.load(file=flag).defaults.jobs == 4

    @pytest.mark.parametrize("how", ["file", "environ"])
    def test_a_named_file_that_is_not_there_is_an_error(self, world, how):
        """A typing error in --config never falls back to something else in silence."""
        missing = Path("nowhere.yaml")
        if how == "environ":
            world.environ["MM_CONFIG"] = str(missing)
        error = world.error("", file=missing if how == "file" else None)
        assert "nowhere.yaml" in str(error)
        assert error.hint

    def test_environment_names_match_keys_loosely_and_values_get_types(self, world):
        """Case, - and . do not matter; lists are YAML; options get their types at the plugin."""
        world.environ |= {
            "MM_BACKENDS__MY_LAKE__ROOT": "s3://b/x",
            "MM_BACKENDS__MY_LAKE__OPTIONS__USE_SSL": "false",
            "MM_BACKENDS__MY_LAKE__OPTIONS__PROFILE": "0755x",
            "MM_SOURCES__VENDOR__ALLOW_HOSTS": "[a.example, b.example]",
            "MM_BACKENDS__NEW__TYPE": "memory",
            "MM_OFFLINE": "1",
        }
        settings = world.load(
            "backends: {My-Lake: {type: s3, root: s3://b/y}}\nsources: {vendor: {type: url}}"
        )
        values = settings.backends["My-Lake"].values
        config = build_config(Lake, values, "backends.My-Lake", settings)
        assert config.root == "s3://b/x"
        assert config.options == {"use_ssl": False, "profile": "0755x"}
        assert settings.sources["vendor"].values["allow_hosts"] == ["a.example", "b.example"]
        assert settings.backends["new"].type == "memory"
        assert settings.defaults.offline is True
        assert settings.origin("backends.My-Lake.root") == "MM_BACKENDS__MY_LAKE__ROOT"
        assert settings.origin("backends.My-Lake") == "mm.yaml:1"

    def test_an_unknown_section_in_the_environment_is_an_error(self, world):
        """A misspelt variable is not ignored."""
        world.environ["MM_BACKEND__LAKE__ROOT"] = "x"
        assert "MM_BACKEND__LAKE__ROOT" in str(world.error(""))

    def test_wrong_values_name_the_variable_or_flag(self, world):
        """What was set in the environment or by a flag is complained about by its name."""
        world.environ["MM_DEFAULTS__JOBS"] = "many"
        assert str(world.error("")).startswith("MM_DEFAULTS__JOBS: defaults.jobs: ")
        assert str(world.error("", overrides={"defaults": {"retries": "x"}})).count(
            "--retries flag"
        )


class TestDotenv:
    def test_the_real_environment_is_never_overridden(self, world, monkeypatch):
        """What is exported to vendors' libraries yields to what is set already."""
        monkeypatch.setenv("AWS_PROFILE", "real")
        monkeypatch.setenv("AWS_REGION", "x")
        monkeypatch.delenv("AWS_REGION")
        monkeypatch.setenv("VENDOR_KEY", "x")
        monkeypatch.delenv("VENDOR_KEY")
        world.write("AWS_PROFILE=dotenv\nAWS_REGION='eu-1'\nVENDOR_KEY=abcdefgh\n", "project/.env")
        world.write("sources: {v: {type: url, key: '${VENDOR_KEY}', p: '${AWS_PROFILE}'}}")
        settings = load_settings(cwd=world.cwd)
        import os

        assert os.environ["AWS_PROFILE"] == "real"
        assert os.environ["AWS_REGION"] == "eu-1"
        assert "VENDOR_KEY" not in os.environ
        assert settings.sources["v"].values == {"key": "abcdefgh", "p": "real"}
        del os.environ["AWS_REGION"]

    def test_a_given_environment_is_not_changed(self, world):
        """With an environment of the caller's own nothing is exported."""
        import os

        world.write("AWS_TEST_ONLY=1\n", "project/.env")
        world.load()
        assert "AWS_TEST_ONLY" not in os.environ
        assert "AWS_TEST_ONLY" not in world.environ


class TestStrictness:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("defaults:\n  jbos: 3\n", "mm.yaml:2: defaults.jbos is not a setting; did you mean 'jobs'?"),
            ("defaults: {retires: 1}", "defaults.retires is not a setting; did you mean 'retries'?"),
            ("backend: {}\n", "mm.yaml:1: backend is not a setting; did you mean 'backends'?"),
            ("models:\n  a: {source: x, revison: b}", "mm.yaml:2: models.a.revison is not a setting; did you mean 'revision'?"),
            ("retention: {keep: 1}", "retention.keep is not a setting"),
            ("backends: {a: {root: /x}}", "backends.a.type is missing"),
            ("models: {a: {revision: x}}", "models.a.source is missing"),
            ("defaults: {jobs: 0}", "greater than or equal to 1"),
            ("defaults: {jobs: 65}", "less than or equal to 64"),
            ("defaults: {jobs: yes}", "a number is wanted"),
            ("defaults: {claim_timeout: soon}", "a duration is"),
            ("defaults: {connections: 0}", "greater than or equal to 1"),
            ("defaults: {memory: 31MiB}", "at least 32MiB"),
            ("defaults: {limit_rate: fast}", "a size is"),
            ("defaults: {limit_rate: 0}", "above 0"),
            ("defaults: {backend: lak}\nbackends: {lake: {type: local, root: x}}", "mm.yaml:1: defaults.backend: there is no backend named 'lak'; did you mean 'lake'?"),
            ("models: {../up: {source: x}}", "model id"),
            ("models: {a: {source: x, type: nonsense}}", "mm.yaml:1: models.a.type"),
            ("backends: [1]", "mm.yaml:1: backends: it should be a valid dictionary"),
            ("backends: {'a/b': {type: local}}", "backends.a/b"),
            ("- 1", "mm.yaml:1: the file is not a mapping"),
            ("a: 1\na: 2", "mm.yaml:2: a is given twice (first at line 1)"),
            ("defaults: {jobs: 1}\nbackends: {\n x: {type: y, b: {c: 1, c: 2}}}", "mm.yaml:3: backends.x.b.c is given twice"),
            ("a: [1\nb: 2", "mm.yaml:2:2: broken YAML"),
            ("a:\n\tb: 1", "mm.yaml:2:1: broken YAML"),
            ("a: *b", "mm.yaml:1:4: broken YAML"),
            ("a: 1\n---\nb: 1", "broken YAML"),
            ("a: !!python/object/apply:os.system [x]", "tag"),
            ("a: !!python/name:os.system x", "broken YAML"),
            ("version: 2", "mm.yaml:1: version 2 is newer"),
            ("version: '1'", "mm.yaml:1: version must be 1"),
            ("version: true", "mm.yaml:1: version must be 1"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_named_with_its_line(self, world, text, expected):
        """Unknown, missing, doubled, mistyped and broken: each says where and what."""
        assert expected in str(world.error(text))

    @pytest.mark.parametrize("word", ["0755", "1e10", "1234567", "no", "2024-01-01", "1.0", "1:30"])
    def test_an_unquoted_revision_that_yaml_changes_is_an_error(self, world, word):
        """YAML 1.1 would make a number, date, truth value or nothing of it; the hint says: quote."""
        error = world.error(f"models:\n  a:\n    source: hf://a/b\n    version: {word}\n")
        assert str(error).startswith("mm.yaml:4: models.a.version: ")
        assert f'"{word}"' in (error.hint or "")

    def test_quoted_it_is_taken_as_it_is(self, world):
        """In quotes nothing is changed."""
        settings = world.load("models: {a: {source: x, revision: '0755', version: \"1.0\"}}")
        assert settings.models["a"]["revision"] == "0755"
        assert settings.models["a"]["version"] == "1.0"

    @pytest.mark.parametrize("key", ["no", "1.5", "2024-01-01", "~"])
    def test_a_key_that_yaml_changes_is_an_error(self, world, key):
        """The model `no` would silently become `false`."""
        error = world.error(f"backends:\n  {key}: {{type: local}}")
        assert str(error).startswith("mm.yaml:2: YAML reads the key")
        assert f'"{key}"' in error.hint

    def test_all_problems_are_told_at_once(self, world):
        """One run of the editor mends them all."""
        error = world.error("defaults:\n  jbos: 3\n  retries: x\n")
        assert [line.split(":")[1] for line in str(error).split("\n")] == ["3", "2"]

    def test_aliases_and_merge_keys_work(self, world):
        """Anchors save typing; what stands there itself wins over what is merged in."""
        settings = world.load(
            "backends:\n  a: &a {type: local, root: /x, fsync: false}\n  b: {<<: *a, root: /y}\n"
        )
        assert settings.backends["b"].values == {"root": "/y", "fsync": False}
        assert settings.origin("backends.b.root") == "mm.yaml:3"

    def test_a_bomb_of_aliases_is_refused(self, world):
        """A small file cannot fill the memory."""
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
        assert "too many values" in str(world.error("\n".join(lines)))
        assert "nested too deep" in str(world.error("a: " + "[" * 5000))

    def test_bytes_that_are_no_text(self, world):
        """A file in another encoding is refused; a byte order mark is fine."""
        (world.cwd / "mm.yaml").write_bytes(b"a: \xff\xfe")
        with pytest.raises(ConfigError, match=r"mm\.yaml: byte 3 is not UTF-8"):
            world.load()
        (world.cwd / "mm.yaml").write_bytes(b"\xef\xbb\xbfdefaults: {jobs: 2}")
        assert world.load().defaults.jobs == 2

    def test_empty_sections_are_fine(self, world):
        """`backends:` with everything below it commented out is no mistake."""
        assert world.load("backends:\ndefaults:\nmodels:\n").defaults.backend == "local"
        assert world.load("").defaults.backend == "local"


class TestTransfers:
    def test_what_holds_without_a_word(self, world):
        """Safe numbers: eight connections, 128 MiB, no limit."""
        defaults = world.load("").defaults
        assert (defaults.connections, defaults.memory, defaults.limit_rate) == (8, 2**27, None)

    def test_each_layer_may_say_it(self, world):
        """File, environment and flag, in words or numbers."""
        world.write("defaults: {connections: 16, memory: 256MiB, limit_rate: 50MiB}")
        world.environ["MM_DEFAULTS__CONNECTIONS"] = "32"
        defaults = world.load(overrides={"defaults.limit_rate": "10MiB/s"}).defaults
        assert (defaults.connections, defaults.memory) == (32, 2**28)
        assert defaults.limit_rate == 10 * 2**20
        del world.environ["MM_DEFAULTS__CONNECTIONS"]
        assert world.load("defaults: {limit_rate: null}").defaults.limit_rate is None


class TestInterpolation:
    def test_variables_defaults_and_escapes(self, world):
        """Set, unset, empty and escaped."""
        world.environ |= {"A": "aa", "EMPTY": ""}
        settings = world.load(
            "sources:\n  s:\n    type: x\n    a: '${A}/${B:-b}/${EMPTY:-e}/$${A}/$5'\n"
            "    gone: '${B:-}'\n    list: ['${B:-}', '${A}']\n    kept: ''\n"
        )
        assert settings.sources["s"].values == {
            "a": "aa/b/e/${A}/$5",
            "list": ["aa"],
            "kept": "",
        }

    def test_numbers_may_come_from_variables(self, world):
        """The type of the setting decides."""
        world.environ["N"] = "3"
        assert world.load("defaults: {jobs: '${N}', offline: '${O:-true}'}").defaults.jobs == 3
        assert world.load().defaults.offline is True

    def test_an_unset_variable_is_named_with_its_line(self, world):
        """No half-made header is ever sent."""
        error = world.error("sources:\n  v:\n    type: url\n    headers: {X: 'Bearer ${NOPE}'}\n")
        assert "mm.yaml:4: sources.v.headers.X needs the variable NOPE" in str(error)

    def test_what_is_overridden_is_not_asked_for(self, world):
        """Only values that count are looked up."""
        world.environ["MM_BACKENDS__A__ROOT"] = "${NOT_A_REFERENCE}"
        settings = world.load("backends: {a: {type: memory, root: '${NOPE}'}}")
        assert settings.backends["a"].values["root"] == "${NOT_A_REFERENCE}"

    @pytest.mark.parametrize("bad", ["${A-b}", "${", "${1}", "${A:+b}"])
    def test_a_broken_reference_is_an_error(self, world, bad):
        """It is never passed on as it stands."""
        assert "mm.yaml:1: sources.s.a holds a '${'" in str(
            world.error(f"sources: {{s: {{type: x, a: '{bad}'}}}}")
        )

    def test_secrets_from_files(self, world):
        """A file's content is taken without its last newline, relative to mm.yaml, and masked."""
        world.write("file-secret-1\n", "project/run/token")
        settings = world.load("sources: {s: {type: x, value: '${file:run/token}'}}")
        assert settings.sources["s"].values["value"] == "file-secret-1"
        assert redact("x file-secret-1 x") == "x *** x"
        missing = world.error("sources: {s: {type: x, value: '${file:run/nope}'}}")
        assert "mm.yaml:1: sources.s.value: cannot read the file 'run/nope'" in str(missing)


class TestSecrets:
    def test_secrets_that_go_through_settings_are_masked_from_then_on(self, world):
        """By the name of the setting, or of the variable."""
        world.environ |= {
            "T": "by-setting-name",
            "MY_KEY": "by-variable-name",
            "PLAIN": "no-secret",
        }
        world.load("sources: {s: {type: x, token: '${T}', a: 'x ${MY_KEY}', b: '${PLAIN}'}}")
        assert redact("by-setting-name by-variable-name no-secret") == "*** *** no-secret"

    def test_a_plain_secret_in_the_file_is_pointed_out_without_its_value(self, world, caplog):
        """It works, with a warning that tells the line and the better way."""
        token = "hf_" + "abcdefghijklmnop"
        caplog.set_level(logging.WARNING)
        settings = world.load(f"sources:\n  hf: {{type: huggingface, token: {token}}}\n")
        assert settings.sources["hf"].values["token"] == token
        assert "mm.yaml:2: sources.hf.token holds a secret" in caplog.text
        assert token not in caplog.text

    def test_shown_settings_hold_no_secret(self, world):
        """By name, by look, in headers, and by the type of the plugin's own field."""
        world.environ["V"] = "a-header-value"
        settings = world.load(
            "sources:\n  s: {type: vault, pin: pin-1234, token: tok-1234, headers: {X-Any: '${V}'}, "
            "url: 'https://me:pass-1234@h/'}\nbackends:\n  b: {type: x, root: r, "
            "options: {secret: s-1234, key: k-1234}}\n"
        )
        shown = json.dumps(settings.to_json(origin=True, plugins=Plugins([Offers()])))
        for secret in ("pin-1234", "tok-1234", "a-header-value", "pass-1234", "s-1234", "k-1234"):
            assert secret not in shown
            assert secret not in repr(settings)
        assert settings.to_json(origin=True)["origins"]["sources.s.token"] == "mm.yaml:2"
        assert settings.to_json(origin=True)["origins"]["defaults.jobs"] == "default"
        assert "origins" not in settings.to_json()

    def test_errors_hold_no_value(self, world):
        """A secret in the wrong place is not quoted in the complaint."""
        world.environ["MM_DEFAULTS__JOBS"] = "sup3r-s3cret"
        assert "sup3r" not in str(world.error("defaults: {retries: sup3r}\n"))
        with pytest.raises(ConfigError) as caught:
            build_config(Vault, {"pin": ["sup3r"], "nope": "sup3r"}, "sources.s", None)
        assert "sup3r" not in str(caught.value)
        assert "sources.s.nope is not a setting" in str(caught.value)

    def test_secret_fields_of_plugins_are_masked_from_then_on(self):
        """What a plugin declares as secret is remembered when its settings are built."""
        build_config(Vault, {"pin": "declared-secret"}, "sources.s", None)
        assert redact("x declared-secret") == "x ***"


class Lake(PluginConfig):
    root: str
    options: dict[str, Any] = Field(default_factory=dict)
    retries: int = 3


class Vault(PluginConfig):
    pin: SecretStr
    headers: dict[str, str] = {}


class LakeSink(Sink):
    type = "lake"
    Config = Lake


class VaultSource(Source):
    type = "vault"

    class Config(Vault):
        token: str | None = None
        url: str | None = None

    def snapshot(self, request):
        raise NotImplementedError

    def read(self, file, start=0, end=None):
        raise NotImplementedError


LakeSink.__abstractmethods__ = frozenset()


class Offers:
    @hookimpl
    def mm_sources(self):
        return [VaultSource]

    @hookimpl
    def mm_sinks(self):
        return [LakeSink]


class TestPluginSettings:
    def test_wrong_settings_of_a_plugin_name_file_and_line(self, world):
        """The plugin's own settings are as strict as ours."""
        settings = world.load(
            "backends:\n  lake:\n    type: lake\n    roott: s3://x\n    retries: x\n"
        )
        with pytest.raises(ConfigError) as caught:
            build_config(Lake, settings.backends["lake"].values, "backends.lake", settings)
        told = str(caught.value).split("\n")
        assert "mm.yaml:4: backends.lake.roott is not a setting; did you mean 'root'?" in told
        assert any(t.startswith("mm.yaml:5: backends.lake.retries: ") for t in told)
        assert any("backends.lake.root is missing" in t for t in told)

    def test_an_unquoted_number_gets_the_hint_to_quote_it(self, world):
        """YAML's traps are pointed out for plugins, too."""
        settings = world.load("backends:\n  lake: {type: lake, root: 0755}\n")
        with pytest.raises(ConfigError) as caught:
            build_config(Lake, settings.backends["lake"].values, "backends.lake", settings)
        assert 'root: "0755"' in caught.value.hint

    def test_validate_tells_all(self, world):
        """Every backend and source is checked against its plugin, and every name looked up."""
        settings = world.load(
            "defaults: {backend: a}\nbackends:\n  a: {type: lake, root: x}\n  b: {type: lake, nope: 1}\n"
            "  c: {type: unheard, root: x}\nsources:\n  v: {type: vault}\n"
            "models: {m: {source: x, to: [a, bb, 's3://x/y']}}\n"
        )
        problems = "\n".join(validate(settings, Plugins([Offers()])))
        assert "mm.yaml:4: backends.b.nope is not a setting" in problems
        assert "mm.yaml:5: backends.c: no plugin offers sinks of type 'unheard'" in problems
        assert "mm.yaml:7: sources.v.pin is missing" in problems
        assert "models.m.to: there is no backend named 'bb'" in problems
        assert "s3://x/y" not in problems
        assert (
            validate(world.load("backends: {a: {type: lake, root: x}}"), Plugins([Offers()])) == []
        )


class TestSchema:
    def test_it_is_a_schema_and_knows_the_plugins(self, world):
        """An editor accepts what is right and marks what is wrong."""
        jsonschema = pytest.importorskip("jsonschema")
        schema = json_schema(Plugins([Offers()]))
        jsonschema.Draft202012Validator.check_schema(schema)
        check = jsonschema.Draft202012Validator(schema)
        assert check.is_valid(
            {"backends": {"a": {"type": "lake", "root": "x", "retries": "${N:-3}"}}}
        )
        for wrong in (
            {"backends": {"a": {"type": "lake", "roott": "x"}}},
            {"backends": {"a": {"type": "unheard", "root": "x"}}},
            {"backends": {"a": {"root": "x"}}},
            {"backends": {"a": {"type": "lake", "root": 755}}},
            {"sources": {"a": {"type": "vault"}}},
            {"defaults": {"jobs": 65}},
            {"defaults": {"jbos": 6}},
            {"version": 2},
            {"models": {"a": {"source": "x", "revision": 7}}},
        ):
            assert not check.is_valid(wrong), wrong

    def test_the_example_of_the_design_fits_the_built_ins(self):
        """What the design shows is valid against the installed plugins."""
        jsonschema = pytest.importorskip("jsonschema")
        import yaml

        plugins = Plugins.discover()
        wanted = {"local", "s3", "gcs", "fsspec"}
        if not wanted <= set(plugins.sinks()) or not {"huggingface", "url"} <= set(
            plugins.sources()
        ):
            pytest.fail(f"built-in plugins do not load: {plugins.broken}")
        jsonschema.Draft202012Validator(json_schema(plugins)).validate(yaml.safe_load(DESIGN))

    def test_the_starter_file_names_every_default_as_it_is(self, world):
        """Each commented line can be taken in, and says what holds without it (but for a limit)."""
        text = re.sub(r"^  # (\w+: \S+ +#)", r"  \1", starter(), flags=re.MULTILINE)
        given = world.load(text).defaults
        assert given.model_fields_set == set(Defaults.model_fields)
        assert given == Defaults(
            backend="local", limit_rate="50MiB", writer="ci/nightly", weights="safetensors"
        )
        written = (
            text.replace("  # old:", "  old:")
            .replace("# policies", "policies")
            .replace("# retention", "retention")
            .replace("# signing", "signing")
            .replace("# registry", "registry")
        )
        settings = world.load(re.sub(r"^#   ", "  ", written, flags=re.MULTILINE))
        assert settings.backends["old"].values["transfer"] == "fsspec"
        assert settings.retention["grace"] == 86_400
        assert settings.policies["ours"]["limits"] == {"max_size": "200GiB"}
        assert settings.signing["key_file"] == str(world.cwd / "release.pem")

    def test_the_starter_file_loads(self, world):
        """What `mm config init` writes is valid, and is one local backend."""
        settings = world.load(starter())
        assert settings.backends["local"].values["root"] == str(world.cwd / "models")
        assert settings.defaults.backend == "local"
        other = world.load(starter(backend="lake", type="s3", root="s3://b/p: #x"))
        assert other.backends["lake"].values["root"] == "s3://b/p: #x"

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            (
                "{limits: {max_sise: 1}}",
                "mm.yaml:1: policies.p.limits.max_sise is not a setting; did you mean 'max_size'?",
            ),
            ("{limits: {max_size: big}}", "mm.yaml:1: policies.p.limits.max_size: a size is"),
            ("{limit: {}}", "no plugin offers policies of type 'limit'"),
            ("{formats: {allow: [pikle]}}", "'pikle' is neither a format nor a pattern"),
        ],
    )
    def test_what_is_wrong_with_a_policy_is_named_with_its_line(self, world, text, told):
        """By its plugin, as the settings of a backend are."""
        (problem,) = validate(world.load(f"policies: {{p: {text}}}"), Plugins.discover())
        assert told in problem

    def test_every_setting_is_documented(self):
        """docs/configuration.md names each section and each key of the core's own sections."""
        text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
        schema = json_schema(Plugins())
        keys = set(schema["properties"])
        for name in ("Defaults", "WantedModel", "Retention", "PolicySet", "SigningSection"):
            keys |= set(schema["$defs"][name]["properties"])
        assert sorted(k for k in keys if not re.search(rf"\b{k}\b", text)) == []


@pytest.mark.parametrize(
    ("text", "size"),
    [(5, 5), ("256MiB", 2**28), ("1.5 GB", 1_500_000_000), ("2k", 2000), ("1TiB", 2**40), ("0", 0)],
)
def test_sizes(text, size):
    """Decimal and binary units, in either case, with or without a space."""
    assert parse_size(text) == size


@pytest.mark.parametrize("bad", ["", "MiB", "-1", "1XB", True, None, "1e3", "nan"])
def test_what_is_no_size(bad):
    """Anything else is refused."""
    with pytest.raises(ValueError, match="a size is"):
        parse_size(bad)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (5, 5),
        ("90s", 90),
        ("24h", 86400),
        ("1h30m", 5400),
        ("7d", 604800),
        ("250ms", 0.25),
        ("1.5", 1.5),
    ],
)
def test_durations(text, seconds):
    """Units may be joined; a bare number is seconds."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("bad", ["", "h", "-1s", "5 parsecs", "1 2", True, None])
def test_what_is_no_duration(bad):
    """Anything else is refused."""
    with pytest.raises(ValueError, match="a duration is"):
        parse_duration(bad)


@pytest.mark.parametrize("text", ["50MiB", "50MiB/s", " 50 MiB /s", 50 * 2**20])
def test_rates(text):
    """A size, by the second; saying so is allowed."""
    assert parse_rate(text) == 50 * 2**20


def test_loading_needs_no_vendor_library():
    """Reading the settings is cheap: no vendor's library, no terminal library."""
    code = "import sys, mm_core.config as c; c.load_settings(environ={}); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    heavy = {"s3fs", "gcsfs", "fsspec", "huggingface_hub", "rich", "structlog", "urllib3", "dotenv"}
    assert heavy & set(loaded.stdout.split()) == set()
