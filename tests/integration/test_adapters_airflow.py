"""The operators and the sensor, as tasks of Airflow run them. Needs Airflow: ``nox -s adapters``."""

from __future__ import annotations

import copy
import json
import os
import threading

import pytest

os.environ |= {"AIRFLOW__CORE__UNIT_TEST_MODE": "True", "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
pytest.importorskip("airflow")

from mm_core import CancelledError, IntegrityError, ModelManager, PartialError, write_lockfile
from mm_core.config import load_settings
from mm_plugins.adapters.airflow import (
    AirflowFailException,
    ModelSensor,
    PullModelOperator,
    SyncModelsOperator,
)

pytestmark = pytest.mark.integration

FILES = {"config.json": b'{"model_type": "tiny"}', "w.bin": bytes(range(256)) * 100}


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    return str(folder)


def pull(**options):
    return PullModelOperator(task_id="pull", **options)


def sensor(**options):
    return ModelSensor(task_id="wait", **options)


def rendered(operator, **words):
    """The operator that runs: a copy, with its templates filled in."""
    running = copy.copy(operator)
    running.render_template_fields(words)
    return running


def test_pull_says_what_other_tasks_need(model, local):
    """As JSON, with the very version; a second time nothing is fetched."""
    operator = pull(
        source="{{ source }}", to="{{ store }}", model_id="t/m", aliases=["{{ day }}"]
    )  # fmt: skip
    operator = rendered(operator, source=model, store=local, day="monday")
    told = operator.execute({})
    assert json.loads(json.dumps(told)) == told
    assert told["reference"] == f"t/m@{told['version']}"
    assert told["fetched_bytes"] == told["size_bytes"] == sum(map(len, FILES.values()))
    assert operator.execute({}) == {**told, "fetched_bytes": 0}
    with ModelManager(backend=local) as manager:
        assert manager.get(told["reference"]).entry.aliases == ("monday",)
        assert told["path"] == str(manager.get("t/m:monday").path)


def test_what_no_retry_can_help_is_not_retried(model, local):
    """A wrong request fails the task at once; what may pass is left to `retries`."""
    for wrong in ({"source": "./none"}, {"source": model, "model_id": "../x"}):
        with pytest.raises(AirflowFailException):
            pull(to=local, **wrong).execute({})
    with pytest.raises(AirflowFailException, match="lake"):
        pull(source=model, to="lake").execute({})


def test_a_killed_pull_stops(tmp_path, local):
    """on_kill ends it, and a retry goes on."""
    folder = tmp_path / "big"
    folder.mkdir()
    (folder / "w.bin").write_bytes(b"x" * 30_000_000)
    config = tmp_path / "slow.yaml"
    config.write_text("version: 1\ndefaults: {limit_rate: 1MiB}\n")
    operator = pull(source=str(folder), to=local, model_id="t/big", config=str(config))
    operator.on_kill()  # before anything runs, too
    killer = threading.Timer(2, operator.on_kill)  # Airflow calls it from its signal handler
    killer.start()
    with pytest.raises(CancelledError):
        operator.execute({})
    assert pull(source=str(folder), to=local, model_id="t/big").execute({})["version"]


def test_the_sensor_waits_for_a_version(model, local, dead_store):
    """Not there, or a store that does not answer: not yet. What is wrong for good fails."""
    waits = rendered(sensor(reference="t/m:{{ day }}", backend=local), day="prod")
    assert waits.mode == "reschedule"
    assert not waits.poke({}).is_done
    with ModelManager(backend=local) as manager:
        version = manager.push(model, "t/m", aliases=["prod"]).entry.version
    found = waits.poke({})
    assert found.is_done
    assert found.xcom_value["reference"] == f"t/m@{version}"
    assert not sensor(reference="t/m:prod", config=dead_store).poke({}).is_done
    with pytest.raises(AirflowFailException, match="lake"):
        sensor(reference="t/m:prod", backend="lake").poke({})


@pytest.fixture
def dead_store(tmp_path):
    """An mm.yaml with a store that nobody serves, and not much patience."""
    config = tmp_path / "dead.yaml"
    config.write_text(
        "version: 1\ndefaults: {backend: dead}\n"
        "backends: {dead: {type: s3, root: s3://b/p, options: "
        "{endpoint_url: 'http://127.0.0.1:9', key: k, secret: s}}}\n"
    )
    return str(config)


def test_sync_makes_the_lock_true(tmp_path, model, local):
    """Step by step; then there is nothing to do. A failure is told by its model."""
    config = tmp_path / "mm.yaml"
    wanted = {"t/m": {"source": model, "aliases": ["prod"], "to": [local]}}
    config.write_text(json.dumps({"version": 1, "models": wanted}))
    lockfile = tmp_path / "mm.lock"
    operator = SyncModelsOperator(task_id="sync", lockfile=str(lockfile), config=str(config))
    with pytest.raises(AirflowFailException, match="there is no"):
        operator.execute({})
    with ModelManager(load_settings(config)) as manager:
        write_lockfile(lockfile, manager.lock().lock)
    assert [step["step"] for step in operator.execute({})["steps"]] == ["fetch"]
    assert [step["step"] for step in operator.execute({})["steps"]] == ["present"]
    with ModelManager(backend=local) as manager:
        manager.remove("t/m:prod")
    (tmp_path / "model/w.bin").write_bytes(b"other")
    with pytest.raises((PartialError, IntegrityError), match="t/m"):
        operator.execute({})
