"""The command line without a network: help, mistakes, formats, the seam of errors."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from mm_core.cli import main
from mm_core.cli.app import COMMANDS, OFFERED, make_app
from mm_core.cli.base import FORMATS, global_options

pytestmark = pytest.mark.unit


def walk(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name="mm")
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from walk(child, (*path, name))


ALL = dict(walk(make_app()))


def accepted(words: list[str]) -> None:
    """Parse `words` as mm would, without doing anything."""
    command: click.Command = make_app()
    context = command.make_context("mm", words, resilient_parsing=False)
    while isinstance(command, click.Group):
        named = "_protected_args" if hasattr(context, "_protected_args") else "protected_args"
        words = [*getattr(context, named), *context.args]
        _, child, rest = command.resolve_command(context, words)
        assert child is not None
        context = child.make_context(child.name, rest, parent=context)
        command = child


@pytest.fixture
def mm(capfd, tmp_path, monkeypatch):
    """Run mm in this process, in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_help_has_examples_that_parse(mm, path):
    """Every command explains itself: exit 0, examples, and each example is a call that exists."""
    code, out, _ = mm(*path, "--help")
    assert code == 0
    _, _, examples = out.partition("\nExamples:\n")
    lines = [line.strip() for line in examples.splitlines()]
    calls = [shlex.split(line.partition(" > ")[0])[1:] for line in lines if line.startswith("mm ")]
    assert calls or "$(mm " in examples
    for words in calls:
        accepted(words if words[0] == "run" else [word for word in words if word != "--"])


def test_the_table_says_what_the_commands_say():
    """The short help in the table, made without importing anything, is each command's own."""
    told = {name: short for name, (_, short) in COMMANDS.items()} | OFFERED
    for name, short in told.items():
        assert ALL[(name,)].help.replace("\n", " ").startswith(short.rstrip(".")), name


def test_what_plugins_offer_is_not_in_the_table():
    """A command of a plugin comes by its hook, as a stranger's does."""
    assert not OFFERED.keys() & COMMANDS.keys()


@pytest.mark.parametrize("path", [path for path in ALL if path], ids=" ".join)
def test_every_command_takes_the_global_options(path):
    """Users type them after the command."""
    own = {option for param in ALL[path].params for option in param.opts}
    assert {option for param in global_options() for option in param.opts} <= own


@pytest.mark.parametrize(
    "words",
    [
        "plugins list --json",
        "--json plugins list",
        "plugins --json list",
        "plugins list --format json",
        "--format=json plugins list",
    ],
)
def test_json_may_be_asked_for_anywhere(mm, words):
    """One document with its schema version, and not a word on stderr."""
    code, out, err = mm(*words.split())
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["schema_version"] == 1
    assert "local" in [plugin["name"] for plugin in document["plugins"]]


def test_the_option_nearest_to_the_command_wins(mm):
    """`mm --json plugins list --format quiet` prints names alone."""
    assert "huggingface" in mm("--json", "plugins", "list", "--format", "quiet")[1].splitlines()


def test_json_lines_print_an_entry_a_line(mm):
    """Each line is a document that says its kind."""
    _, out, _ = mm("plugins", "list", "--format", "jsonl")
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) >= 9
    assert {(line["kind"], line["schema_version"]) for line in lines} == {("plugin", 1)}


@pytest.mark.parametrize(
    "words",
    ["pull", "pull x --no-such-option", "list --limit none", "list --format xml", "no-such-command",
     "plugins no-such", "pull hf://a/b --type chat", "--no-such-option list",
     "config validate --config missing.yaml", "list --backend no-such"],
)  # fmt: skip
@pytest.mark.parametrize("format", FORMATS)
def test_usage_errors_are_exit_2_in_every_format(mm, words, format):
    """For people on stderr; for programs as one document on stdout, and nothing on stderr."""
    if "--format" in words and format != "human":
        pytest.skip("it names a format itself")
    code, out, err = mm(*words.split(), *(["--format", format] if format != "human" else []))
    assert code == 2
    if format in ("json", "jsonl"):
        error = json.loads(out)["error"]
        assert error["message"]
        assert error["hint"]
        assert err == ""
    else:
        assert out == ""
        assert err.startswith("Error: ")
        assert "\nHint: " in err


def test_an_unknown_command_is_answered_with_the_nearest(mm):
    """A slip of the finger gets the name that was meant."""
    assert "'pull'" in mm("pul")[2]


@pytest.mark.parametrize("words", [[], ["alias"], ["config"]])
def test_a_bare_group_shows_its_help(mm, words):
    """Nothing was asked for, so it is a usage error; the help is on stderr."""
    code, out, err = mm(*words)
    assert (code, out) == (2, "")
    assert "Examples:" in err


def test_version(mm):
    """`mm --version` is the version of the distribution."""
    import mm_core

    assert mm("--version")[:2] == (0, f"mm {mm_core.__version__}\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--limit-rate fast", "--limit-rate flag: defaults.limit_rate: a size is"),
        ("--memory 1MiB", "--memory flag: defaults.memory: it should be at least 32MiB"),
        ("--memory 2TiB", "--memory flag: defaults.memory: it should be at most 1TiB"),
        ("--connections 0", "--connections"),
        ("--connections 1025", "--connections"),
        ("-j 0", "'-j'"),
        ("-j 65", "'-j'"),
    ],
)
def test_impossible_transfer_options_name_their_flag(mm, tmp_path, words, said):
    """Exit 2, and nothing begun."""
    (tmp_path / "m").mkdir()
    code, _, err = mm("push", "m", "m", *words.split())
    assert code == 2
    assert said in err


@pytest.mark.parametrize("name", ["jobs", "connections"])
def test_a_flag_has_the_bounds_of_its_setting(name):
    """What the environment may say, the flag may say, and nothing else."""
    from mm_core.config import Defaults

    bound = Defaults.model_json_schema()["properties"][name]
    (option,) = [param for param in ALL["pull",].params if param.name == name]
    assert isinstance(option.type, click.IntRange)
    assert (option.type.min, option.type.max) == (bound["minimum"], bound["maximum"])


def test_not_found_is_exit_3(mm):
    """A plugin that is not there."""
    code, out, _ = mm("plugins", "info", "no-such", "--json")
    assert (code, json.loads(out)["error"]["code"]) == (3, "not_found")


@pytest.mark.parametrize(
    ("shell", "word"),
    [("bash", "complete -o nosort -F"), ("zsh", "#compdef mm"), ("fish", "complete ")],
)
def test_completion_prints_a_script(mm, shell, word):
    """A script that asks mm itself."""
    code, out, _ = mm("completion", shell)
    assert code == 0
    assert word in out
    assert "_MM_COMPLETE" in out


def test_completion_answers(mm, monkeypatch):
    """What the script asks is answered with commands and options."""
    monkeypatch.setenv("_MM_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "mm pu")
    monkeypatch.setenv("COMP_CWORD", "1")
    code, out, _ = mm()
    assert code == 0
    assert out.split() == ["plain,pull", "plain,push"]


def test_config_init_never_overwrites(mm, tmp_path):
    """The first writes a file that is valid; the second is refused, and the file stands."""
    assert mm("config", "init")[0] == 0
    written = (tmp_path / "mm.yaml").read_bytes()
    code, _, err = mm("config", "init")
    assert code == 8
    assert "mm.yaml" in err
    assert (tmp_path / "mm.yaml").read_bytes() == written
    code, out, _ = mm("config", "validate", "--json")
    assert code == 0
    assert json.loads(out)["files"] == [str(tmp_path / "mm.yaml")]


def test_config_show_tells_origins_and_no_secret(mm, tmp_path, monkeypatch):
    """Each value has the file and line, or the variable, that it is from; secrets are masked."""
    (tmp_path / "mm.yaml").write_text(
        "version: 1\nsources:\n  hf: {type: huggingface, token: '${TOKEN}'}\n"
    )
    monkeypatch.setenv("TOKEN", "hf_" + "a1b2c3d4e5" * 3)
    monkeypatch.setenv("MM_DEFAULTS__JOBS", "3")
    code, out, err = mm("config", "show", "--origin", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["config"]["defaults"]["jobs"] == 3
    assert document["origins"]["defaults.jobs"] == "MM_DEFAULTS__JOBS"
    assert document["origins"]["sources.hf.type"] == "mm.yaml:3"
    assert "a1b2c3d4e5" not in out + err
    lines = mm("config", "show", "--origin")[1].splitlines()
    assert any(line.split() == ["defaults.jobs", "3", "MM_DEFAULTS__JOBS"] for line in lines)


def test_config_validate_lists_all_problems(mm, tmp_path):
    """Not the first alone: every wrong setting of a plugin, with its line."""
    (tmp_path / "mm.yaml").write_text(
        "version: 1\nbackends:\n  a: {type: local, root: ./a, colour: red}\n  b: {type: nosuch, root: x}\n"
    )
    code, out, _ = mm("config", "validate", "--json")
    document = json.loads(out)
    assert (code, document["ok"]) == (2, False)
    assert len(document["problems"]) == 2
    assert "mm.yaml:3" in document["problems"][0]


def test_config_schema_is_the_schema(mm):
    """What is printed is a JSON schema with the plugins' settings in it."""
    schema = json.loads(mm("config", "schema")[1])
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert "backends.local" in schema["$defs"]


def test_an_empty_backend(mm, tmp_path):
    """Nothing is there yet: an empty list, a word on how to begin, and nothing is written."""
    store = str(tmp_path / "store")
    assert json.loads(mm("list", "--json", "--backend", store)[1])["models"] == []
    _, out, err = mm("list", "--backend", store)
    assert (out, "mm pull" in err) == ("", True)
    assert mm("list", "-q", "--backend", store)[1] == ""
    assert json.loads(mm("history", "--json", "--backend", store)[1])["commits"] == []
    assert not (tmp_path / "store").exists()


def test_backends_are_listed_and_tested(mm, tmp_path):
    """The default is marked; a test leaves nothing behind; a folder that is a file fails."""
    (tmp_path / "mm.yaml").write_text(
        "version: 1\ndefaults: {backend: good}\nbackends:\n"
        "  good: {type: local, root: ./good}\n  bad: {type: local, root: ./file/x}\n"
    )
    (tmp_path / "file").write_text("in the way")
    rows = json.loads(mm("backends", "list", "--json")[1])["backends"]
    assert [(row["name"], row["default"]) for row in rows] == [("good", True), ("bad", False)]
    code, out, _ = mm("backends", "test", "--json")
    steps = json.loads(out)["steps"]
    assert code == 0
    assert all(step["ok"] for step in steps)
    assert len(steps) == 6
    assert not [path for path in (tmp_path / "good").rglob("*") if path.is_file()]
    code, out, err = mm("backends", "test", "bad")
    assert (code, out) == (1, "")
    assert "write: failed" in err


def test_a_store_that_does_not_refuse_a_second_create_fails_the_test():
    """This is what the test is for: such a store would lose commits."""
    from mm_core.cli.backends import probe
    from mm_core.exceptions import StorageError
    from mm_plugins.sinks.memory import MemorySink

    class Careless(MemorySink):
        def create(self, key, data):
            self.put(key, data)

    steps = list(probe(Careless(Careless.Config(root="memory://careless"))))
    failed = [step for step in steps if step.error]
    assert [step.name for step in failed] == ["create twice is refused"]
    assert isinstance(failed[0].error, StorageError)


def test_doctor_finds_what_is_wrong(mm, tmp_path, monkeypatch):
    """All is well: exit 0. A wrong setting: exit 1, named. Tokens: whether, never what."""
    store = str(tmp_path / "store")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "z9y8x7w6v5" * 3)
    code, out, err = mm("doctor", "--json", "--backend", store)
    checks = {check["check"]: check for check in json.loads(out)["checks"]}
    assert code == 0, out
    assert checks["credentials huggingface"]["detail"] == "present"
    assert checks[f"backend {store}"]["state"] == "ok"
    assert "z9y8x7w6v5" not in out + err
    (tmp_path / "mm.yaml").write_text("version: 1\nbackends:\n  a: {type: nosuch, root: x}\n")
    code, out, _ = mm("doctor")
    assert code == 1
    assert "nosuch" in out


def test_the_user_is_asked_nothing_without_a_terminal(mm, tmp_path):
    """A script that forgets --yes fails, and nothing is removed."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "w.bin").write_bytes(b"1")
    store = str(tmp_path / "store")
    assert mm("push", str(folder), "my/model", "--to", store, "-q")[0] == 0
    code, _, err = mm("rm", "my/model", "--backend", store)
    assert code == 2
    assert "--yes" in err
    assert len(json.loads(mm("list", "--json", "--backend", store)[1])["models"]) == 1
    assert mm("rm", "my/model", "--backend", store, "--yes")[0] == 0
    assert json.loads(mm("list", "--json", "--backend", store)[1])["models"] == []
    (entry,) = json.loads(mm("list", "--all", "--json", "--backend", store)[1])["models"]
    assert entry["status"] == "DELETED"


STRANGER = """
import click
from mm_core import hookimpl

@hookimpl
def mm_cli():
    @click.command()
    @click.pass_obj
    def greet(state):
        "Say hello."
        state.emit({"hello": "world"}, human=["hello"])

    @click.command(name="list")
    def mine():
        "Never reached."

    return [greet, mine]
"""


@pytest.fixture
def stranger(tmp_path):
    """Install a distribution with plugins from source texts; gives the environment to see it."""

    def install(**modules: str) -> dict[str, str]:
        site = tmp_path / "site"
        info = site / "mm_strange-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mm-strange\nVersion: 1.0\n")
        names = "\n".join(f"{name} = {name}" for name in modules)
        (info / "entry_points.txt").write_text(f"[model_manager]\n{names}\n")
        for name, text in modules.items():
            (site / f"{name}.py").write_text(text)
        return os.environ | {"PYTHONPATH": str(site)}

    return install


def process(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "mm_core", *arguments],
        capture_output=True, text=True, env=env, timeout=60,
    )  # fmt: skip


def test_a_stranger_adds_commands(stranger):
    """It is in the help, it runs with the global options, and it cannot take a built-in's place."""
    env = stranger(strange_good=STRANGER)
    assert "greet  Say hello." in process("--help", env=env).stdout
    for words in (("--json", "greet"), ("greet", "--json")):
        ran = process(*words, env=env)
        assert json.loads(ran.stdout) == {"schema_version": 1, "hello": "world"}
    assert "Never reached" not in process("list", "--help", env=env).stdout


def test_a_broken_stranger_is_warned_about_and_stops_nothing(stranger):
    """One whose hook fails and one that cannot be imported: named on stderr, all else works."""
    env = stranger(
        strange_hook=STRANGER.replace("return [greet, mine]", "raise RuntimeError('no')"),
        strange_import="import no_such_module",
        strange_good=STRANGER,
    )
    shown = process("--help", env=env)
    assert shown.returncode == 0
    assert "greet" in shown.stdout
    assert shown.stderr.count("strange_hook") == 1
    assert "no_such_module" in shown.stderr
    unknown = process("no-such", env=env)
    assert unknown.returncode == 2
    assert unknown.stderr.count("Warning: plugin strange_hook") == 1
    assert "Traceback" not in unknown.stderr
    ran = process("config", "schema", env=env)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_fault_of_ours_is_one_line(stranger):
    """An exception that nobody expected: exit 1 and a hint, the traceback only when asked for."""
    fault = STRANGER.replace(
        "state.emit(", "raise ValueError('token hf_abcdefghijklmnop'); state.emit("
    )
    env = stranger(strange_fault=fault)
    ran = process("greet", env=env)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("Internal error: ValueError: token hf_***\nHint: ")
    assert "Traceback" not in ran.stderr
    told = process("greet", "--json", env=env)
    assert json.loads(told.stdout)["error"]["code"] == "internal"
    loud = process("greet", env=env | {"MM_DEBUG": "1"})
    assert "Traceback" in loud.stderr
    assert "abcdefghijklmnop" not in loud.stderr


def test_help_costs_no_plugin(stranger):
    """`mm --help` of a plain installation imports neither pluggy nor any plugin."""
    code = (
        "import sys; from mm_core.cli import main; main(['--help']);"
        "print([m for m in sys.modules if m.split('.')[0] in ('pluggy', 'pydantic', 'mm_plugins', 'yaml')],"
        "file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.stderr.strip() == "[]"


def test_colours_are_for_terminals(mm):
    """None in a pipe; with --color always there are; NO_COLOR counts for less than the option."""
    assert "\x1b[" not in mm("plugins", "list")[1]
    assert "\x1b[1m" in mm("plugins", "list", "--color", "always")[1]
    assert "\x1b[1m" in mm("--color", "always", "plugins", "list")[1]


def test_what_a_terminal_would_obey_is_not_printed():
    """Escape sequences in what comes from outside are made visible."""
    from mm_core.cli import output

    lines = list(output.table(("A",), [("\x1b[31mred\r\n\x9b2J",)]))
    assert "\x1b[31m" not in click.unstyle(lines[1]) + lines[1]
    assert "\n" not in lines[1]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 * 1024**2, "5.0 MiB"),
        (3 * 1024**4, "3.0 TiB"),
        (None, "?"),
    ],
)
def test_sizes(count, text):
    """Binary units, one decimal."""
    from mm_core.cli import output

    assert output.size(count) == text


def test_nothing_is_cut():
    """A long id stands whole, so that it can be copied, and columns are aligned."""
    from mm_core.cli import output

    long = "org/" + "x" * 300
    header, *rows = output.table(("ID", "N"), [(long, 1), ("a", 2)])
    assert rows[0] == f"{long}  1"
    assert rows[1].index("2") == rows[0].index("  1") + 2
    assert click.unstyle(header).endswith("N")
