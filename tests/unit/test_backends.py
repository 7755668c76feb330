"""What an address names: a backend, or a source and the address in its own words."""

import types

import pytest

from mm_core import (
    ConfigError,
    OfflineError,
    PluginConfig,
    PluginError,
    Plugins,
    Source,
    UsageError,
    hookimpl,
)
from mm_core.backends import open_sink, open_source
from mm_core.config import Settings, load_settings
from mm_plugins.sinks import local, memory

pytestmark = pytest.mark.unit


class Web(Source):
    """Stands for any source that is addressed by URL."""

    class Config(PluginConfig):
        token: str | None = None
        root: str | None = None
        allow_hosts: list[str] = []

    def snapshot(self, request):
        raise NotImplementedError

    def read(self, file, start=0, end=None):
        raise NotImplementedError


class Https(Web):
    type = "url"
    schemes = ("http", "https")


class Hub(Web):
    type = "hub"
    schemes = ("hf",)


class Folder(Web):
    type = "folder"

    @classmethod
    def answers(cls, url):
        return "://" not in url


@pytest.fixture
def plugins():
    offers = types.ModuleType("offers")
    offers.mm_sources = hookimpl(lambda: [Https, Hub, Folder])
    return Plugins([local, memory, offers])


@pytest.fixture
def settings(tmp_path):
    def load(text: str = "", **environ: str) -> Settings:
        (tmp_path / "mm.yaml").write_text(text)
        nowhere = {"XDG_CONFIG_HOME": str(tmp_path / "x"), "XDG_CONFIG_DIRS": str(tmp_path / "y")}
        return load_settings(cwd=tmp_path, environ={**nowhere, **environ})

    return load


class TestSinks:
    def test_by_name(self, plugins, settings, tmp_path):
        """A configured name opens the sink of its type with its settings."""
        sink = open_sink(settings("backends: {a: {type: local, root: ./m}}"), plugins, "a")
        assert sink.root == str((tmp_path / "m").resolve())

    def test_by_address(self, plugins, settings, tmp_path, monkeypatch):
        """A URL or a path needs no configuration; a path is relative to where one stands."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        for address, expected in (
            ("./m", tmp_path / "m"),
            ("..", tmp_path.parent),
            (str(tmp_path / "x"), tmp_path / "x"),
            ("~/m", tmp_path / "home" / "m"),
        ):
            assert open_sink(settings(), plugins, address).root == str(expected.resolve())
        assert open_sink(settings(), plugins, "memory://x").root == "memory://x"

    def test_an_unknown_name(self, plugins, settings):
        """A near miss is guessed; else the names that there are, are told."""
        some = settings("backends: {lake: {type: local, root: x}, dr: {type: local, root: y}}")
        with pytest.raises(ConfigError, match="no backend named 'lak'; did you mean 'lake'"):
            open_sink(some, plugins, "lak")
        with pytest.raises(ConfigError, match="there are: dr, lake"):
            open_sink(some, plugins, "zzz")

    def test_wrong_settings_name_their_line(self, plugins, settings):
        """The complaint of the plugin's settings leads back to the file."""
        wrong = settings("backends:\n  a:\n    type: local\n    roott: x\n")
        with pytest.raises(ConfigError, match=r"mm\.yaml:4: backends\.a\.roott is not a setting"):
            open_sink(wrong, plugins, "a")

    def test_an_unknown_type_or_scheme(self, plugins, settings):
        """What no plugin offers is a plugin error."""
        with pytest.raises(PluginError, match="'s4'"):
            open_sink(settings("backends: {a: {type: s4, root: x}}"), plugins, "a")
        with pytest.raises(PluginError, match="s4://"):
            open_sink(settings(), plugins, "s4://bucket")


class TestSources:
    @pytest.mark.parametrize(
        ("address", "type_", "url", "token"),
        [
            ("hf://org/name@main", "hub", "hf://org/name@main", "t"),
            ("one:a.bin", "url", "https://one.example/a.bin", None),
            ("hf:org/name", "hub", "hf://org/name", "t"),
            ("vendor:a/b.bin", "url", "https://dl.example/models/a/b.bin", "v"),
            ("vendor:/a", "url", "https://dl.example/models/a", "v"),
            ("https://dl.example/models/x", "url", "https://dl.example/models/x", "v"),
            ("https://dl.example.evil/models/x", "url", "https://dl.example.evil/models/x", None),
            ("https://dl.example/other", "url", "https://dl.example/other", None),
            ("https://cdn.example/x", "url", "https://cdn.example/x", "c"),
            ("https://user@cdn.example:8443/x", "url", "https://user@cdn.example:8443/x", "c"),
            ("https://cdn.example@evil.example/x", "url", "https://cdn.example@evil.example/x", None),
        ],
    )  # fmt: skip
    def test_addresses(self, plugins, settings, address, type_, url, token):
        """Names, URLs, and the settings of a source only for what it is meant for."""
        some = settings(
            "sources:\n  hf: {type: hub, token: t}\n  mirror: {type: hub, token: m}\n"
            "  vendor: {type: url, token: v, root: 'https://dl.example/models'}\n"
            "  cdn: {type: url, token: c, allow_hosts: [cdn.example]}\n"
            "  one: {type: url, allow_hosts: [one.example]}\n"
        )
        source, words = open_source(some, plugins, address)
        assert (source.type, words, source.config.token) == (type_, url, token)

    def test_the_only_source_of_a_scheme_holds_for_its_urls(self, plugins, settings):
        """Whatever its name is; of two neither holds, unless one is named like the scheme."""
        one = settings("sources: {mirror: {type: hub, token: m}}")
        assert open_source(one, plugins, "hf://a/b")[0].config.token == "m"
        two = settings("sources: {m1: {type: hub, token: a}, m2: {type: hub, token: b}}")
        assert open_source(two, plugins, "hf://a/b")[0].config.token is None

    def test_an_existing_folder(self, plugins, settings, tmp_path, monkeypatch):
        """A folder is a source, with or without ./ before it, by its absolute path."""
        (tmp_path / "model").mkdir()
        monkeypatch.chdir(tmp_path)
        for address in ("model", "./model", str(tmp_path / "model")):
            source, url = open_source(settings(), plugins, address)
            assert (source.type, url) == ("folder", str(tmp_path / "model"))

    @pytest.mark.parametrize(
        ("address", "words"),
        [
            ("org/name", "did you mean hf://org/name"),
            ("./nothing", "no folder './nothing'"),
            ("vendr:x", "did you mean 'vendor'"),
            ("vendor:", "nothing in it"),
            ("", "neither"),
            ("nothing", "neither"),
        ],
    )
    def test_what_means_nothing(self, plugins, settings, tmp_path, monkeypatch, address, words):
        """Each wrong address gets an error that says what would be right."""
        monkeypatch.chdir(tmp_path)
        some = settings("sources: {vendor: {type: url}}")
        with pytest.raises(UsageError) as caught:
            open_source(some, plugins, address)
        assert words in f"{caught.value} {caught.value.hint}"

    def test_a_path_in_a_source_that_is_nowhere(self, plugins, settings):
        """Without a base URL and with any number of hosts it is not guessed."""
        for hosts in ("[]", "[a.example, b.example]", "['*.example']"):
            some = settings(f"sources: {{v: {{type: url, allow_hosts: {hosts}}}}}")
            with pytest.raises(ConfigError, match=r"sources\.v does not say where 'x' is"):
                open_source(some, plugins, "v:x")

    def test_an_unknown_scheme_keeps_its_secret(self, plugins, settings):
        """The error does not repeat the password."""
        with pytest.raises(PluginError) as caught:
            open_source(settings(), plugins, "zz://user:passw0rd@host/x")
        assert "passw0rd" not in str(caught.value)

    def test_offline_refuses_what_needs_the_network(self, plugins, settings, tmp_path):
        """A folder still works; the error says what switched the network off."""
        off = settings("sources: {v: {type: url, allow_hosts: [h.example]}}", MM_OFFLINE="1")
        for address in ("hf://a/b", "v:x", "https://h/x"):
            with pytest.raises(OfflineError, match="MM_OFFLINE"):
                open_source(off, plugins, address)
        assert open_source(off, plugins, str(tmp_path))[0].type == "folder"
