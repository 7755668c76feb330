"""Logging: both kinds of loggers come out the same, and no secret comes out at all."""

import io
import json
import logging
import sys

import pytest
import structlog

from mm_core import ConfigError, setup_logging

pytestmark = pytest.mark.unit


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored():
    """The root logger is everybody's: leave it as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in [h for h in root.handlers if h not in handlers]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


@pytest.fixture
def stderr(capsys):
    """What was written to stderr, which is no terminal here."""
    return Captured(capsys)


class Captured:
    def __init__(self, capsys) -> None:
        self._capsys = capsys
        self._text = ""

    def getvalue(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_both_kinds_of_loggers_come_out_the_same(stderr):
    """stdlib and structlog records are JSON objects with the same keys, in UTC."""
    setup_logging("info")
    structlog.contextvars.bind_contextvars(request="r1")
    logging.getLogger("a").info("pulled %s", "x", extra={"size": 3})
    structlog.get_logger("a").info("pulled x", size=3)
    first, second = lines(stderr)
    assert first.pop("timestamp").endswith("Z")
    assert second.pop("timestamp").endswith("Z")
    assert first == second
    assert first == {
        "event": "pulled x",
        "level": "info",
        "logger": "a",
        "size": 3,
        "request": "r1",
    }


def test_no_secret_in_any_part_of_a_record(stderr):
    """Message, arguments, extra values at any depth, and tracebacks are redacted."""
    setup_logging("DEBUG")
    s = "hf_" + "a1B2c3D4e5F6"
    log = logging.getLogger("a")
    try:
        raise ValueError(f"bad token {s}")
    except ValueError:
        log.exception(
            "cannot use %s", s, extra={"nested": {"list": [s, (s,)]}, "thing": Exception(s)}
        )
    structlog.get_logger("b").warning("x", url=f"https://me:pass@h/?sig={s}", token="anything")
    text = stderr.getvalue()
    assert s not in text
    assert "me:pass" not in text
    assert "anything" not in text
    assert "Traceback" in lines(stderr)[0]["exception"]


def test_a_record_that_holds_itself_is_logged(stderr):
    """A value without an end becomes text, not an endless loop."""
    setup_logging()
    endless: dict = {"a": 1}
    endless["self"] = endless
    logging.getLogger("a").info("x", extra={"value": endless})
    assert lines(stderr)[0]["value"]["a"] == 1


def test_a_terminal_gets_lines_for_people(monkeypatch):
    """On a terminal there is no JSON, and NO_COLOR is obeyed; nothing secret either."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    setup_logging()
    try:
        raise ValueError("hf_abcdefghijklmnop")
    except ValueError:
        logging.getLogger("a").exception("it failed", extra={"size": 3})
    text = stream.getvalue()
    assert "it failed" in text
    assert "size=3" in text
    assert "Traceback" in text
    assert "\x1b[" not in text
    assert "hf_abc" not in text


def test_the_file_gets_json_whatever_stderr_is(monkeypatch, tmp_path):
    """The log file is made with its folders, appended to, and always JSON; both say one time."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    file = tmp_path / "logs" / "deep" / "mm.log"
    setup_logging(log_file=file)
    logging.getLogger("a").info("one")
    setup_logging(log_file=str(file))
    logging.getLogger("a").info("two")
    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert [r["event"] for r in written] == ["one", "two"]
    assert written == lines(stream)


def test_calling_it_twice_doubles_nothing_and_leaves_others_alone(stderr):
    """Our handlers are replaced; those of the program stay."""
    seen = []

    class Mine(logging.Handler):
        def emit(self, record):
            seen.append(record.getMessage())

    logging.getLogger().addHandler(Mine())
    setup_logging("INFO")
    setup_logging("WARNING")
    logging.getLogger("a").info("quiet")
    logging.getLogger("a").warning("loud")
    structlog.get_logger("a").info("quiet")
    assert [r["event"] for r in lines(stderr)] == ["loud"]
    assert seen == ["loud"]


def test_stderr_is_looked_up_for_each_record(stderr, monkeypatch):
    """A progress bar that wraps stderr later gets the records as well."""
    setup_logging()
    later = io.StringIO()
    monkeypatch.setattr(sys, "stderr", later)
    logging.getLogger("a").info("late")
    assert [r["event"] for r in lines(later)] == ["late"]
    assert stderr.getvalue() == ""


def test_nothing_goes_to_stdout(capsys):
    """Stdout is for data."""
    setup_logging()
    structlog.get_logger("a").info("x")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("level", ["LOUD", "", "10", "NOTSET", "getLogger"])
def test_an_unknown_level_is_refused(level):
    """Only the five levels are levels."""
    with pytest.raises(ConfigError):
        setup_logging(level)


def test_a_bad_file_leaves_the_former_setup(stderr, tmp_path):
    """If the file cannot be opened, logging goes on as before."""
    setup_logging()
    (tmp_path / "plain").touch()
    for bad in (tmp_path, tmp_path / "plain" / "log"):
        with pytest.raises(ConfigError, match="cannot write the log file"):
            setup_logging("ERROR", bad)
    logging.getLogger("a").info("still here")
    assert [r["event"] for r in lines(stderr)] == ["still here"]
