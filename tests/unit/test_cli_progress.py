"""What is shown while bytes move."""

from __future__ import annotations

import json
import shutil
import time

import pytest

from mm_core.cli import main
from mm_core.cli.progress import Bars, JsonLines, PlainLines, Reporter, make_reporter
from mm_core.cli.state import State
from mm_core.schemas import TransferEvent

pytestmark = pytest.mark.unit

MIB = 1024 * 1024
STORY = [
    TransferEvent(kind="planned", model_id="org/m", total=4 * MIB),
    TransferEvent(kind="started", model_id="org/m", path="a.bin", total=3 * MIB),
    TransferEvent(kind="progress", model_id="org/m", path="a.bin", done=MIB, total=3 * MIB),
    TransferEvent(kind="progress", model_id="org/m", path="a.bin", done=2 * MIB, total=3 * MIB),
    TransferEvent(kind="stored", model_id="org/m", path="a.bin", done=3 * MIB, total=3 * MIB),
    TransferEvent(kind="stored", model_id="org/m", path="b.bin", done=MIB, total=MIB),
    TransferEvent(kind="committed", model_id="org/m", done=4 * MIB, total=4 * MIB),
]


def test_plain_lines_say_where_it_stands_now_and_then(capsys):
    """The start, each stored file, the end, and a line at most every few seconds between."""
    times = iter([0.0, 1.0, 6.0, 6.0])
    with PlainLines(every=5.0, clock=lambda: next(times)) as reporter:
        for event in STORY:
            reporter(event)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "org/m: 4.0 MiB",
        "  2.0 MiB of 4.0 MiB (50 %)",
        "stored a.bin (3.0 MiB)",
        "stored b.bin (1.0 MiB)",
        "org/m: committed",
    ]


def test_json_lines_are_the_events(capsys):
    """One line each on stdout, with the event's own kind and numbers."""
    with JsonLines() as reporter:
        for event in STORY:
            reporter(event)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["kind"] for line in lines] == [event.kind for event in STORY]
    assert lines[2]["done"] == MIB
    assert {line["schema_version"] for line in lines} == {1}


def test_bars_hear_everything_and_keep_stdout_clean(capsys):
    """Bars are drawn on stderr alone, for a second model as well."""
    with Bars() as reporter:
        for event in [*STORY, *STORY]:
            reporter(event)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("org/m: committed") == 2


@pytest.mark.parametrize(
    ("options", "terminal", "ci", "kind"),
    [
        ({}, True, "", Bars),
        ({}, True, "true", PlainLines),
        ({}, False, "", PlainLines),
        ({"no_progress": True}, True, "", Reporter),
        ({"quiet": True}, True, "", Reporter),
        ({"format": "quiet"}, True, "", Reporter),
        ({"format": "json"}, True, "", Reporter),
        ({"format": "jsonl"}, True, "", JsonLines),
    ],
)
def test_where_what_is_shown(monkeypatch, options, terminal, ci, kind):
    """Bars on a terminal, lines elsewhere and in CI, nothing for programs or where not wanted."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    monkeypatch.setenv("CI", ci)
    with make_reporter(State(**options)) as reporter:
        assert type(reporter) is kind


def test_without_rich_there_are_lines(monkeypatch):
    """The extra is not needed: a terminal then gets plain lines."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with make_reporter(State()) as reporter:
        assert type(reporter) is PlainLines


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda _: ["models/org/m/v/a.bin", "models/org/m/v/c.bin"], "parts of 1 file are kept; "),
        (lambda _: ["models/org/m/v/b.bin"], ""),
        (lambda _: [], ""),
        (lambda _: 1 / 0, ""),
        (lambda _: time.sleep(30), ""),
    ],
)
def test_an_interrupt_tells_of_parts_that_are_kept(answer, said):
    """Of files that were under way; a store that fails or is slow is not waited for."""
    reporter = Reporter()
    with pytest.raises(KeyboardInterrupt), reporter.asking(answer):
        for event in (STORY[0], STORY[1], STORY[2], STORY[5]):
            reporter(event)
        raise KeyboardInterrupt
    stored = "1 file is stored, 1.0 MiB of 4.0 MiB; "
    assert reporter.how_to_go_on() == f"{stored}{said}run the same command again to go on"


@pytest.mark.parametrize(
    ("words", "last"),
    [
        (["verify"], "read 20 B of 20 B"),
        (["verify", "--no-deep"], "looked at 2 of 2 files"),
        (["registry", "check", "--deep"], "read 20 B of 20 B"),
        (["registry", "backup", "x.mmbackup"], "read 4 of 4 objects"),
        (["registry", "restore", "before.mmbackup", "--to", "other"], "created 4 of 4 objects"),
    ],
)
def test_long_reading_says_how_far_it_is(tmp_path, monkeypatch, capfd, words, last):
    """On stderr, every few seconds; nothing where no progress is wanted, and never on stdout."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.bin", "b.bin"):
        (tmp_path / "model" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "model" / name).write_bytes(name.encode() * 2)
    assert main(["push", "model", "m", "--version", "1", "--to", "./store", "-q"]) == 0
    assert main(["registry", "backup", "before.mmbackup", "--backend", "./store", "-q"]) == 0
    monkeypatch.setattr("mm_core.cli.progress.EVERY", 0.0)
    capfd.readouterr()
    words = [*words, *([] if "--to" in words else ["--backend", "./store"])]
    words = [word.replace("other", "./other") for word in words]
    assert main([*words, "--no-progress"]) == 0
    quiet = capfd.readouterr()
    (tmp_path / "x.mmbackup").unlink(missing_ok=True)
    shutil.rmtree(tmp_path / "other", ignore_errors=True)
    assert main(words) == 0
    told = capfd.readouterr()
    assert quiet.err == ""
    assert told.err.splitlines()[-1] == last
    assert told.out == quiet.out
