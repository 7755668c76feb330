"""The operator and the sensor for Airflow: what they hand on, and how they stop."""

from __future__ import annotations

import threading

import pytest

from mm_core import CancelledError, ModelManager

pytest.importorskip("airflow", reason="Airflow is not installed: nox -s adapters has it")

from mm_plugins.adapters.airflow import ModelSensor, PullModelOperator  # noqa: E402

pytestmark = pytest.mark.unit


@pytest.fixture
def source(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_bytes(b"{}")
    return str(tmp_path / "m")


def pull(source, lake, **options):
    return PullModelOperator(task_id="p", source=source, to=lake, model_id="org/m", **options)


def test_a_pull_hands_on_the_exact_version(source, tmp_path):
    """As plain data; the second time nothing moves."""
    lake = str(tmp_path / "store")
    told = pull(source, lake, version="1", aliases=["prod"]).execute({})
    assert told == {
        "model_id": "org/m", "version": "1", "reference": "org/m@1",
        "path": f"{lake}/models/org/m/1", "size_bytes": 2, "fetched_bytes": 2,
    }  # fmt: skip
    assert pull(source, lake, version="1").execute({})["fetched_bytes"] == 0
    with ModelManager(backend=lake) as manager:
        assert manager.registry().resolve("org/m:prod").version == "1"


def test_the_sensor_waits_for_the_alias(source, tmp_path):
    """It hands on what the alias names, not the alias."""
    lake = str(tmp_path / "store")
    sensor = ModelSensor(task_id="s", reference="org/m@prod", backend=lake)
    assert not sensor.poke({}).is_done
    pull(source, lake, version="1", aliases=["prod"]).execute({})
    seen = sensor.poke({})
    assert (seen.is_done, seen.xcom_value) == (True, "org/m@1")


def test_a_killed_task_stops_its_pull(tmp_path, hub):
    """And leaves nothing that anybody would take for a version."""
    from mm_core.testing.material import noise

    hub.add_repo("org/m", files={"w.safetensors": noise(30 << 20)})
    (tmp_path / "mm.yaml").write_text("defaults: {limit_rate: 1MiB}\n")
    lake = str(tmp_path / "store")
    task = PullModelOperator(task_id="p", source="hf://org/m", to=lake, config=tmp_path / "mm.yaml")
    threading.Timer(2, task.on_kill).start()
    with pytest.raises(CancelledError):
        task.execute({})
    with ModelManager(backend=lake) as manager:
        assert {entry.status.value for entry in manager.list_models()} == {"FAILED"}
