"""A DAG that brings a model, waits for the alias that approves it, and uses it.

``pip install model-manager apache-airflow``. As a script it runs once, without a scheduler and a
network: the source and the backend are folders. In a deployment of yours, the DAG is what counts:
`source` is hf://org/model, `LAKE` a backend of your mm.yaml.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

HERE = Path(os.environ.setdefault("MM_EXAMPLE", tempfile.mkdtemp(prefix="mm-airflow-")))
if __name__ == "__main__":
    os.environ.setdefault("AIRFLOW_HOME", str(HERE / "airflow"))
    os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "false")
    os.environ.setdefault("AIRFLOW__CORE__DAGS_FOLDER", str(Path(__file__).resolve().parent))

import json

import mm_core as mm
from mm_plugins.adapters.airflow import ModelSensor, PullModelOperator

try:
    from airflow.sdk import dag, task
except ImportError:  # Airflow 2
    from airflow.decorators import dag, task

LAKE = str(HERE / "store")


@dag(schedule=None, catchup=False, tags=["models"])
def bring_and_use():
    pulled = PullModelOperator(
        task_id="pull", source=str(HERE / "tiny"), to=LAKE, model_id="embed/tiny", version="1",
        aliases=["candidate"],
    )  # fmt: skip

    @task
    def approve(version: dict) -> None:
        with mm.ModelManager(backend=LAKE) as manager:
            manager.registry().set_alias(version["model_id"], "prod", version["version"])

    approved = ModelSensor(
        task_id="approved", reference="embed/tiny@prod", backend=LAKE, mode="reschedule",
        poke_interval=5, timeout=600,
    )  # fmt: skip

    @task
    def use(reference: str) -> int:
        folder = mm.get(reference, backend=LAKE)
        size = json.loads((folder / "config.json").read_text())["size"]
        print(f"{reference}: size {size}")
        return size

    approve(pulled.output) >> approved
    use(approved.output)


made = bring_and_use()

if __name__ == "__main__":
    import subprocess
    import sys

    (HERE / "tiny").mkdir()
    (HERE / "tiny/config.json").write_text('{"size": 4}')
    subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=True)
    run = made.test()
    print("state:", getattr(run.state, "value", run.state))
    sys.exit(str(run.state).lower().rpartition(".")[2] != "success")
