"""The example of a webhook: told when models come and go, signed, and never in the way of a pull."""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from mm_core import ModelManager, Plugins

pytestmark = pytest.mark.integration

FILE = Path(__file__).parents[2] / "examples/plugin-webhook/src/mm_webhook/__init__.py"
SECRET = "shared-with-the-receiver"


@pytest.fixture
def webhook(monkeypatch):
    """The plugin, as Python imports it."""
    spec = importlib.util.spec_from_file_location("mm_webhook", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PAUSE", 0.0)
    return module


@pytest.fixture
def receiver(monkeypatch):
    """A server that keeps what it is told, and fails as often as `failing` says."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.attempts += 1
            if server.failing:
                server.failing -= 1
                self.send_error(503)
                return
            server.told.append((dict(self.headers), body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.told, server.failing, server.attempts = [], 0, 0
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("MM_WEBHOOK_URL", f"http://127.0.0.1:{server.server_port}/models")
    monkeypatch.setenv("MM_WEBHOOK_SECRET", SECRET)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def manager(webhook, tmp_path, local):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with ModelManager(plugins=Plugins.discover(extra=[webhook]), backend=local) as made:
        yield made


def test_what_comes_and_goes_is_told(manager, receiver, tmp_path):
    """Signed, so that the receiver knows who says it."""
    entry = manager.push(tmp_path / "model", "org/model", version="1").entry
    manager.remove("org/model@1")
    events = []
    for headers, body in receiver.told:
        wanted = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        assert headers["X-Signature"] == f"sha256={wanted}"
        told = json.loads(body)
        events.append((told["event"], told["model"]["model_id"], told["model"]["version"]))
    assert events == [("committed", entry.model_id, "1"), ("removed", entry.model_id, "1")]


def test_a_receiver_that_fails(manager, receiver, tmp_path, caplog):
    """Is asked again; where it stays away, the model has come all the same."""
    receiver.failing = 2
    manager.push(tmp_path / "model", "org/model", version="1")
    assert (len(receiver.told), receiver.attempts) == (1, 3)
    receiver.failing = 99
    entry = manager.push(tmp_path / "model", "org/model", version="2").entry
    assert entry.status.value == "AVAILABLE"
    assert any("mm_committed" in record.getMessage() for record in caplog.records)
    assert SECRET not in caplog.text


def test_without_an_address_it_is_quiet(manager, receiver, tmp_path, monkeypatch):
    """Installed and not set up: nothing happens."""
    monkeypatch.delenv("MM_WEBHOOK_URL")
    manager.push(tmp_path / "model", "org/model", version="1")
    assert receiver.attempts == 0
