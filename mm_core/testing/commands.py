"""CommandTests: what every command of a plugin must do, and `run`, which runs one as ``mm`` would.

Subclass it and give two fixtures: the `command`, and `arguments` with which it succeeds::

    class TestGreet(CommandTests):
        @pytest.fixture
        def command(self):
            return greet

        @pytest.fixture
        def arguments(self):
            return ["world"]
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import click
import pytest

from mm_core.cli import seam
from mm_core.cli.app import COMMANDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What one run of ``mm`` ended with."""

    code: int
    stdout: str
    stderr: str


def run(command: click.Command, *arguments: str) -> Ran:
    """``mm COMMAND ARGUMENTS…`` in this process, as if only this plugin were installed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = seam.run([command.name or "", *arguments], strangers=[command])
    return Ran(code=code, stdout=out.getvalue(), stderr=err.getvalue())


class CommandTests:
    """One command. Needs the fixtures `command` and `arguments`."""

    @pytest.fixture
    def command(self) -> click.Command:
        raise NotImplementedError("give a fixture `command` that returns the command")

    @pytest.fixture
    def arguments(self) -> Sequence[str]:
        raise NotImplementedError("give a fixture `arguments` with which it succeeds")

    def test_it_has_a_name_of_its_own(self, command: click.Command) -> None:
        """No plugin replaces a built-in command."""
        assert command.name
        assert command.name not in COMMANDS

    def test_it_explains_itself(self, command: click.Command) -> None:
        """``--help`` says in its first line what it does, and shows an example."""
        ran = run(command, "--help")
        assert ran.code == 0
        assert command.get_short_help_str(limit=200)
        assert f"mm {command.name}" in ran.stdout.partition("\n")[2], "show an example"

    def test_it_prints_data_on_stdout(
        self, command: click.Command, arguments: Sequence[str]
    ) -> None:
        """With ``--json`` one document with its schema_version, and no words beside it."""
        ran = run(command, *arguments, "--json")
        assert (ran.code, ran.stderr) == (0, "")
        assert json.loads(ran.stdout)["schema_version"] == 1

    def test_it_speaks_to_people_otherwise(
        self, command: click.Command, arguments: Sequence[str]
    ) -> None:
        """Without ``--json`` it prints something, and that is no JSON."""
        ran = run(command, *arguments)
        assert ran.code == 0
        assert ran.stdout.strip()
        assert not ran.stdout.startswith("{")

    def test_a_mistake_is_told_without_a_traceback(
        self, command: click.Command, arguments: Sequence[str]
    ) -> None:
        """An option that there is not ends with exit code 2, and with --json as a document."""
        ran = run(command, *arguments, "--no-such-option")
        assert (ran.code, ran.stdout) == (2, "")
        assert "--no-such-option" in ran.stderr
        ran = run(command, *arguments, "--no-such-option", "--json")
        assert (ran.code, ran.stderr) == (2, "")
        assert json.loads(ran.stdout)["error"]["code"] == "usage"
