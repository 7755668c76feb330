"""The fixture `mm_model`, as the entry point brings it into a run of pytest that knows nothing of it."""

from __future__ import annotations

import pytest

from mm_core import ModelManager

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.unit

ASKS = """
    def test_it(mm_model):
        assert (mm_model("embed/minilm@prod") / "config.json").read_text() == "{}"
"""


@pytest.fixture
def store(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one/config.json").write_text("{}")
    with ModelManager(backend=str(tmp_path / "store")) as manager:
        manager.push(tmp_path / "one", "embed/minilm", aliases=["prod"])
    return str(tmp_path / "store")


@pytest.fixture
def run(pytester, monkeypatch):
    """A run of pytest with some settings, in a process of its own, without other plugins."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def started(tests, ini=""):
        pytester.makeini(f"[pytest]\nfilterwarnings = error\n{ini}")
        pytester.makepyfile(tests)
        return pytester.runpytest_subprocess("-p", "model_manager", "-rs")

    return started


@pytest.fixture
def unreachable(monkeypatch):
    """A store at a port where nobody listens."""
    pytest.importorskip("s3fs")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("MM_DEFAULTS__COMMIT_TIMEOUT", "1")
    monkeypatch.setenv("MM_DEFAULTS__BACKEND", "s3://nobody/there")


def test_the_settings_of_pytest_name_the_backend(run, store):
    """`mm_backend`."""
    run(ASKS, f"mm_backend = {store}").assert_outcomes(passed=1)


def test_the_settings_of_mm_name_the_backend(run, store, monkeypatch):
    """Where pytest's do not; and a call names another."""
    monkeypatch.setenv("MM_DEFAULTS__BACKEND", store)
    run(ASKS).assert_outcomes(passed=1)
    tests = ASKS.replace('@prod"', f'@prod", backend={store!r}')
    run(tests, "mm_backend = ./empty").assert_outcomes(passed=1)


def test_fixtures_of_a_whole_run_can_use_it(run, store):
    """It is as long-lived as they are, and gives the same folder again."""
    tests = """
    import pytest

    @pytest.fixture(scope="session")
    def minilm(mm_model):
        return mm_model("embed/minilm@prod")

    def test_it(minilm, mm_model):
        assert mm_model("embed/minilm@prod") is minilm
    """
    run(tests, f"mm_backend = {store}").assert_outcomes(passed=1)


@pytest.mark.parametrize("ini", ["", "mm_unreachable = skip"])
def test_what_is_not_there_fails(run, store, ini):
    """Also where what cannot be reached is skipped: in the words of `mm`, without a traceback."""
    done = run(ASKS.replace("prod", "none"), f"mm_backend = {store}\n{ini}")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(
        [
            "mm_model embed/minilm@none: no available version answers to *",
            "see `mm list --all` for what there is, or pull it",
        ]
    )
    done.stdout.no_fnmatch_line("*exception occurred*")


def test_what_cannot_be_reached_fails(run, unreachable):
    """If nothing else is said."""
    done = run(ASKS)
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["mm_model embed/minilm@prod: *Connection refused*"])


def test_what_cannot_be_reached_is_skipped(run, unreachable):
    """If that is said; the second test does not wait again, and says why as well."""
    tests = ASKS + ASKS.replace("test_it", "test_again")
    done = run(tests, "mm_unreachable = skip")
    done.assert_outcomes(skipped=2)
    done.stdout.fnmatch_lines(["SKIPPED*mm_model embed/minilm@prod: *Connection refused*"])


def test_a_wrong_setting_is_an_error(run):
    """Not something that is passed over."""
    done = run(ASKS, "mm_unreachable = never")
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*mm_unreachable is 'never': it can be fail or skip*"])


def test_a_run_that_asks_for_no_model_loads_nothing(pytester, monkeypatch):
    """Of Model Manager but the plugin itself, which pytest finds where nobody names it."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makepyfile(
        """
        import sys

        def test_it():
            ours = {m for m in sys.modules if m.partition(".")[0] in ("mm_core", "mm_plugins")}
            assert ours == {
                "mm_plugins", "mm_plugins.adapters", "mm_plugins.adapters.pytest_plugin"
            }
        """
    )
    pytester.runpytest_subprocess("-p", "no:schemathesis").assert_outcomes(passed=1)
