"""Spans: one for each thing that is done, as a tree, with no secret; and none where nobody asks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mm_core import (
    IntegrityError,
    MMError,
    ModelManager,
    NotFoundError,
    load_settings,
    remember_secret,
)
from mm_core.testing.material import noise

pytestmark = pytest.mark.unit

trace = pytest.importorskip("opentelemetry.trace")
sdk = pytest.importorskip("opentelemetry.sdk.trace")
export = pytest.importorskip("opentelemetry.sdk.trace.export")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

FILES = {"config.json": b"{}", "large.bin": noise(20_000_000), "w.bin": b"w" * 1000}


@pytest.fixture(scope="module")
def exporter():
    """What a program sets up once; there is no way to take it back, so at the end it keeps nothing."""
    provider, exporter = sdk.TracerProvider(), memory.InMemorySpanExporter()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    yield exporter
    exporter.shutdown()


@pytest.fixture
def spans(exporter):
    """The spans that ended since they were asked for last, by name."""

    def taken() -> dict[str, list]:
        found: dict[str, list] = {}
        for span in exporter.get_finished_spans():
            found.setdefault(span.name, []).append(span)
        exporter.clear()
        return found

    exporter.clear()
    return taken


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for path, data in FILES.items():
        (folder / path).write_bytes(data)
    return folder


@pytest.fixture
def manager(tmp_path):
    with ModelManager(backend=str(tmp_path / "store")) as manager:
        yield manager


def is_child(span, parent) -> bool:
    return span.parent is not None and span.parent.span_id == parent.context.span_id


def test_a_pull_and_its_files(manager, model, spans):
    """Below the caller's own span; the files below the pull, though threads carry them."""
    with trace.get_tracer("mine").start_as_current_span("mine"):
        manager.pull(str(model), model_id="org/m", version="1", jobs=3)
    found = spans()
    (mine,), (pull,), files = found["mine"], found["mm.pull"], found["mm.file"]
    assert is_child(pull, mine)
    told = dict(pull.attributes)
    assert told.pop("mm.source") == str(model)
    total = sum(map(len, FILES.values()))
    assert told == {
        "mm.model": "org/m", "mm.version": "1", "mm.backend": manager.backend_name(),
        "mm.bytes": total, "mm.size": total,
    }  # fmt: skip
    assert pull.status.status_code is trace.StatusCode.UNSET
    assert {span.attributes["mm.path"]: span.attributes["mm.bytes"] for span in files} == {
        path: len(data) for path, data in FILES.items()
    }
    for span in files:
        assert is_child(span, pull)
        assert span.attributes["mm.action"] == "fetch"


def test_each_thing_has_its_span(tmp_path, manager, model, spans):
    """Copy, get, verify and gc; a copy is a pull, and a get moves files."""
    manager.push(model, "org/m", version="1")
    spans()
    other = str(tmp_path / "other")
    manager.copy("org/m", source=manager.backend_name(), to=other)
    found = spans()
    (copy,), (pull,) = found["mm.copy"], found["mm.pull"]
    assert dict(copy.attributes) == {"mm.source": manager.backend_name(), "mm.backend": other}
    assert is_child(pull, copy)
    manager.replicate(source=manager.backend_name(), to=other)
    assert set(spans()) == {"mm.copy"}
    manager.get("org/m", output=tmp_path / "out")
    found = spans()
    (get,) = found["mm.get"]
    assert (get.attributes["mm.model"], get.attributes["mm.version"]) == ("org/m", "1")
    assert [is_child(span, get) for span in found["mm.file"]] == [True] * len(FILES)
    manager.verify("org/m")
    (verify,) = spans()["mm.verify"]
    assert (verify.attributes["mm.files"], verify.attributes["mm.bad"]) == (len(FILES), 0)
    manager.remove("org/m")
    manager.gc(manager.plan_gc(grace=0))
    (gc,) = spans()["mm.gc"]
    assert gc.attributes["mm.bytes"] >= sum(map(len, FILES.values()))


def test_a_sync_and_its_pulls(tmp_path, model, spans):
    """The pulls are below the sync, in the threads that carry them out."""
    config = tmp_path / "mm.yaml"
    config.write_text(
        f"version: 1\nbackends: {{a: {{type: local, root: '{tmp_path}/a'}}}}\n"
        f"models: {{org/m: {{source: '{model}', to: [a]}}}}\n"
    )
    with ModelManager(load_settings(config)) as manager:
        lock = manager.lock().lock
        spans()
        manager.sync(lock)
    found = spans()
    (sync,), (pull,) = found["mm.sync"], found["mm.pull"]
    assert is_child(pull, sync)
    assert len(found["mm.file"]) == len(FILES)


def test_what_fails_is_told_without_secrets(tmp_path, manager, spans):
    """The error is recorded and the status is set, in the span of the pull; no secret is in it."""
    remember_secret("s3cr3t-value")
    address = tmp_path / "s3cr3t-value"
    address.mkdir()
    (address / "w.bin").write_bytes(b"w")
    with pytest.raises(NotFoundError, match="s3cr3t-value"):
        manager.pull(str(address), model_id="org/m", include=["*.json"])
    (pull,) = spans()["mm.pull"]
    assert pull.status.status_code is trace.StatusCode.ERROR
    (event,) = pull.events
    assert event.attributes["exception.type"] == "mm_core.exceptions.NotFoundError"
    assert "Traceback" in event.attributes["exception.stacktrace"]
    assert "s3cr3t" not in pull.to_json()
    assert pull.attributes["mm.source"] == str(tmp_path / "***")


def test_addresses_are_told_without_what_opens_them(tmp_path, spans):
    """Passwords and the values of secret parameters, also of an address that nobody answers."""
    (tmp_path / "mm.yaml").write_text("version: 1\ndefaults: {retries: 0}\n")
    settings = load_settings(tmp_path / "mm.yaml")
    address = "http://user:pass-word@127.0.0.1:1/w.bin?session=1&api-token=abcdefgh"
    with ModelManager(settings, backend=str(tmp_path / "store")) as manager, pytest.raises(MMError):
        manager.pull(address, model_id="org/m")
    (pull,) = spans()["mm.pull"]
    assert "abcdefgh" not in pull.to_json()
    assert "pass-word" not in pull.to_json()
    assert "127.0.0.1:1/w.bin?session=1" in pull.attributes["mm.source"]


def test_a_file_that_fails(manager, model, spans):
    """The error is in the span of the file and in that of the get."""
    entry = manager.push(model, "org/m", version="1").entry
    (entry.path / "w.bin").chmod(0o644)
    (entry.path / "w.bin").write_bytes(b"v" * 1000)
    spans()
    with pytest.raises(IntegrityError):
        manager.get("org/m", output=model.parent / "out")
    found = spans()
    failed = [s for s in found["mm.file"] if s.status.status_code is trace.StatusCode.ERROR]
    assert "w.bin" in [span.attributes["mm.path"] for span in failed]
    (get,) = found["mm.get"]
    assert get.status.status_code is trace.StatusCode.ERROR
    assert "w.bin" in get.status.description


@pytest.mark.parametrize("before", ["", "sys.modules['opentelemetry'] = None\n"])
def test_who_does_not_use_it_pays_nothing(tmp_path, model, before):
    """The API is not imported, whether it is installed or not."""
    code = (
        f"import sys\n{before}from mm_core import ModelManager\n"
        f"with ModelManager(backend={str(tmp_path / 'store')!r}) as manager:\n"
        f"    manager.push({str(model)!r}, 'org/m', version='1')\n"
        "    assert manager.verify().ok\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry.')])\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.stdout == "[]\n", ran.stderr
