"""Plugins are found, looked up by type and URL, and the broken ones are named."""

import sys
import textwrap
import types

import pytest

from mm_core import PluginError, Plugins, Sink, Source, hookimpl

pytestmark = pytest.mark.unit

SOURCE = """
    from mm_core import Source, hookimpl

    class Greeting(Source):
        type = "{type}"
        schemes = ("{type}",)
        def snapshot(self, request): ...
        def read(self, file, start=0, end=None): ...

    @hookimpl
    def mm_sources():
        return [Greeting]
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package the way pip does: a module and a dist-info folder on sys.path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made = []

    def add(name: str, code: str, *, entry: str | None = None, version: str = "1.0") -> None:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[model_manager]\n{entry or name} = {name}\n")
        made.append(name)

    yield add
    for name in made:
        sys.modules.pop(name, None)


def info(plugins, name):
    return {i.name: i for i in plugins.infos()}[name]


def source(type_, *, answers=None, schemes=None):
    """A plugin with one source, made without a file."""

    class Made(Source):
        type = type_

        def snapshot(self, request): ...

        def read(self, file, start=0, end=None): ...

    Made.schemes = (type_,) if schemes is None else schemes
    if answers is not None:
        Made.answers = classmethod(answers)
    module = types.ModuleType(f"plugin_{type_}_{id(Made)}")
    module.mm_sources = hookimpl(lambda: [Made])
    return module


def test_an_installed_plugin_is_found_with_its_origin(install):
    """Name, package, version and offers are known; the type is found by name and by URL."""
    install("mm_greet", SOURCE.format(type="greet"), entry="greet", version="2.1")
    plugins = Plugins.discover()
    found = info(plugins, "greet")
    assert (found.distribution, found.version, found.error) == ("mm_greet", "2.1", None)
    assert found.offers == {"sources": ("greet",)}
    assert found.hooks == ("mm_sources",)
    assert plugins.source_type("greet") is plugins.source_for("GREET://x")
    assert found.to_json()["offers"] == {"sources": ["greet"]}


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("def broken(:", "SyntaxError"),
        ("raise RuntimeError('token hf_abcdefghijklmnop')", "RuntimeError: token hf_***"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("from mm_core import hookimpl\n@hookimpl\ndef mm_source(): ...", "there is no hook named mm_source; did you mean mm_sources?"),
        ("def mm_sources(): return []", "mm_sources is not marked with @hookimpl"),
        ("from mm_core import hookimpl\n@hookimpl\ndef mm_event(event, wrong): ...", "wrong"),
        ("from mm_core import hookimpl\n@hookimpl\ndef mm_sources(): return 1/0", "mm_sources: ZeroDivisionError: division by zero"),
        ("from mm_core import hookimpl\n@hookimpl\ndef mm_sources(): return None", "mm_sources: TypeError"),
        ("from mm_core import hookimpl\n@hookimpl\ndef mm_sources(): return [int]", "mm_sources: int is no Source"),
        ("from mm_core import hookimpl, Sink\n@hookimpl\ndef mm_sinks(): return [Sink]", "mm_sinks: Sink does not define copy, create"),
        ("from mm_core import hookimpl\n@hookimpl\ndef mm_sinks(): return ['s3']", "mm_sinks: 's3' is not a class"),
        (SOURCE.format(type="x").replace('("x",)', '"x"').replace("\n    ", "\n"), "schemes is a text"),
        (SOURCE.format(type="x").replace('type = "x"', "").replace("\n    ", "\n"), "has no `type`"),
    ],
)  # fmt: skip
def test_a_broken_plugin_is_named_and_stops_nobody(install, code, error):
    """Whatever is wrong with it, the others work, and it is listed with its error."""
    install("mm_bad", code, entry="bad")
    install("mm_greet", SOURCE.format(type="greet"), entry="greet")
    plugins = Plugins.discover()
    assert error in info(plugins, "bad").error
    assert error in plugins.broken["bad"]
    assert plugins.source_type("greet").type == "greet"


def test_a_broken_plugin_is_mentioned_when_its_type_is_asked_for(install):
    """The error for a type that nobody offers says which plugins do not work, and why."""
    install("mm_bad", "import nothing_of_that_name", entry="bad")
    plugins = Plugins.discover()
    for ask in (plugins.source_type, plugins.source_for):
        with pytest.raises(PluginError, match=r"bad: .*nothing_of_that_name") as caught:
            ask("bad://x")
        assert "mm plugins list" in caught.value.hint


def test_two_plugins_of_one_type_are_named_both(install):
    """Neither wins by chance; all other types go on working."""
    install("mm_one", SOURCE.format(type="greet"), entry="one")
    install("mm_two", SOURCE.format(type="greet"), entry="two")
    install("mm_other", SOURCE.format(type="other"), entry="other")
    plugins = Plugins.discover()
    with pytest.raises(PluginError, match="one and two") as caught:
        plugins.source_type("greet")
    assert "MM_DISABLE_PLUGINS" in caught.value.hint
    assert "greet" not in plugins.sources()
    assert plugins.source_type("other").type == "other"


def test_two_packages_may_give_their_plugin_one_name(install):
    """A stranger cannot push a plugin aside by taking its name."""
    install("mm_a", SOURCE.format(type="one"), entry="same")
    install("mm_b", SOURCE.format(type="two"), entry="same")
    plugins = Plugins.discover()
    assert plugins.source_type("one") is not plugins.source_type("two")
    assert info(plugins, "same").module == "mm_a"
    assert info(plugins, "same (mm_b)").module == "mm_b"


@pytest.mark.parametrize("word", ["greet", "mm_greet", " other , greet "])
def test_plugins_can_be_left_out(install, monkeypatch, word):
    """MM_DISABLE_PLUGINS takes names and modules; what is left out is not even imported."""
    install("mm_greet", "raise RuntimeError", entry="greet")
    monkeypatch.setenv("MM_DISABLE_PLUGINS", word)
    plugins = Plugins.discover()
    assert "greet" not in {i.name for i in plugins.infos()}
    assert "greet" not in plugins.broken


def test_a_set_of_plugins_holds_just_those():
    """Tests and programs can name their plugins; nothing is shared between sets."""
    one = source("one")
    assert set(Plugins([one]).sources()) == {"one"}
    assert Plugins().sources() == {}
    assert {"one"} <= set(Plugins.discover(extra=[one]).sources())


def test_a_url_goes_to_the_scheme_before_anybody_is_asked():
    """`answers` is asked only where no scheme matches; one that fails is named, not raised."""

    def fails(cls, url):
        raise RuntimeError("oh")

    plugins = Plugins(
        [source("a"), source("b", answers=lambda cls, url: True), source("c", answers=fails)]
    )
    assert plugins.source_for("a://x").type == "a"
    assert plugins.source_for("zzz://x").type == "b"
    assert plugins.source_for("./folder").type == "b"
    assert "oh" in str(plugins.broken)


def test_two_that_answer_one_url_are_named_both():
    """The caller is told to choose."""
    both = Plugins([source("a", schemes=("x",)), source("b", schemes=("x",))])
    with pytest.raises(PluginError, match=r"several sources answer x://: a, b"):
        both.source_for("x://y")
    with pytest.raises(PluginError, match=r"no plugin answers y://"):
        both.source_for("y://token:secret@z")


def test_plugins_may_be_objects_with_dangerous_attributes():
    """An attribute that raises breaks this plugin alone."""

    class Odd:
        @property
        def anything(self):
            raise RuntimeError("do not touch")

    plugins = Plugins([Odd(), source("a")])
    assert "do not touch" in plugins.broken["Odd"]
    assert plugins.source_type("a")


def test_a_hook_may_have_another_name():
    """pluggy's `specname` is no misspelling."""

    class Named:
        @hookimpl(specname="mm_event")
        def on_event(self, event): ...

    assert Plugins([Named()]).broken == {}


def test_sinks_are_looked_up_alike():
    """By type and by the URL of a root."""

    class Made(Sink):
        type = "made"
        schemes = ("made",)

    Made.__abstractmethods__ = frozenset()
    module = types.ModuleType("made_sink")
    module.mm_sinks = hookimpl(lambda: [Made])
    plugins = Plugins([module])
    assert plugins.sink_type("made") is plugins.sink_for("made://x") is plugins.sinks()["made"]
    with pytest.raises(PluginError, match=r"there are: made"):
        plugins.sink_type("s4")
