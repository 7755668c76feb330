"""The documents say what is so: links lead somewhere, commands parse, every hook is told."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shlex
import types
from pathlib import Path

import click
import pytest

from mm_core import Plugins, hookimpl, hookspecs
from mm_core.cli.app import COMMANDS, make_app

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "examples").rglob("*.md"),
]
HOOKS = [name for name in vars(hookspecs) if name.startswith("mm_")]


def made() -> types.ModuleType:
    """docs/make_hooks.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("make_hooks", ROOT / "docs/make_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MADE = made()


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def mm_lines() -> list[tuple[str, str]]:
    """Every line of a shell block that calls mm, with the page it stands on."""
    found = []
    for page in PAGES:
        for block in blocks(page, "bash") + blocks(page, "console"):
            for line in block.replace("\\\n", " ").splitlines():
                command = line.strip().removeprefix("$ ")
                if command.startswith("mm "):
                    found.append((page.name, command.split("#")[0].strip()))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Every relative link names a file of the repository."""
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_documents_show_commands():
    """The search below finds something."""
    assert len(mm_lines()) > 20


@pytest.mark.parametrize(("page", "line"), mm_lines())
def test_commands_parse(page, line):
    """Every mm command in the documents exists and has the options that are shown."""
    for words in simple_commands(line):
        if words[:1] == ["mm"]:
            parse(make_app(), [re.sub(r"^(\[|<).*", "x", word) for word in words[1:]], page)


def simple_commands(line: str) -> list[list[str]]:
    """The words of each command in a line with pipes, redirections and &&."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for token in lexer:
        if set(token) <= set("|&;<>()"):
            commands.append([])
        else:
            commands[-1].append(token)
    return commands


def parse(command: click.Command, words: list[str], page: str) -> None:
    context = click.Context(command, info_name="mm", resilient_parsing=True)
    if not isinstance(command, click.Group):
        known = {o for p in command.params for o in [*p.opts, *p.secondary_opts]} | {"--help"}
        used = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert used <= known, f"{page}: {used - known}"
        return
    while words and words[0].startswith("-"):
        flag = words.pop(0)
        option = next((p for p in command.params if flag in p.opts), None)
        assert option is not None or flag in ("--help", "--version"), f"{page}: {flag}"
        if option is not None and not option.is_flag and not option.count:
            words.pop(0)
    if words and words[0].isidentifier():
        child = command.get_command(context, words[0])
        assert child is not None, f"{page}: there is no command {words[0]!r}"
        parse(child, words[1:], page)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented(name):
    """docs/command-line.md tells each command."""
    assert re.search(rf"\bmm {name}\b", (ROOT / "docs/command-line.md").read_text())


def test_the_page_of_hooks_is_what_the_docstrings_say():
    """docs/hooks.md is what `nox -s hooks` makes now."""
    assert (ROOT / "docs/hooks.md").read_text() == MADE.page()


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_and_argument_is_documented(hook):
    """A section for each, with all its arguments, when, in which thread, errors and an example."""
    section = MADE.section(hook, getattr(hookspecs, hook))
    for part in ("Called", "Threads", "Errors"):
        assert f"- **{part}**: " in section
    for argument in inspect.signature(getattr(hookspecs, hook)).parameters:
        assert f"- **`{argument}`**: " in section
    assert section in (ROOT / "docs/hooks.md").read_text()


@pytest.mark.parametrize("hook", HOOKS)
def test_the_example_of_a_hook_is_one(hook):
    """It is Python, and Model Manager takes it for that hook."""
    names = {"hookimpl": hookimpl}
    exec(MADE.parts(getattr(hookspecs, hook))["Such as"], names)
    plugins = Plugins([types.SimpleNamespace(**{hook: names[hook]})])
    assert [info.hooks for info in plugins.infos()] == [(hook,)]
    specs = inspect.signature(getattr(hookspecs, hook)).parameters
    assert set(inspect.signature(names[hook]).parameters) <= set(specs)


@pytest.mark.parametrize(
    ("told", "missing"),
    [
        ("Called: now.\nThreads: one.\nErrors: none.\nGiven:\n    a: x\nSuch as::\n\n    x", "'b'"),
        ("Called: now.\nThreads: one.\nGiven:\n    a: x\n    b: y\nSuch as::\n\n    x", "Errors"),
        ("Called: now.\nThreads: one.\nErrors: none.\nGiven:\n    a: x\n    b: y\n", "Such as"),
    ],
)
def test_a_hook_that_is_not_told_in_full_is_found(told, missing):
    """A missing argument, part or example stops the page from being made."""

    def mm_new(a, b) -> None: ...

    mm_new.__doc__ = f"Do something.\n\n{told}"
    with pytest.raises(MADE.UndocumentedError, match=missing):
        MADE.section("mm_new", mm_new)


@pytest.mark.parametrize("name", ["demo-command", "test-command"])
def test_readme_has_its_two_commands(name):
    """The two commands for a fresh machine can be found by a script."""
    text = (ROOT / "README.md").read_text()
    assert re.search(rf"<!-- {name} -->\n```bash\npython3 -m venv .*\n```", text)
