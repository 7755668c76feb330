"""A DAG that brings a model, waits for the alias that approves it, and uses it.

``pip install model-manager apache-airflow``. ``python run.py`` beside this runs it once, without a
scheduler and a network.
"""

from __future__ import annotations

import json
import os

import mm_core as mm
from mm_plugins.adapters.airflow import ModelSensor, PullModelOperator

try:
    from airflow.sdk import dag, task
except ImportError:  # Airflow 2
    from airflow.decorators import dag, task

SOURCE = os.environ.get("EXAMPLE_SOURCE", "hf://sentence-transformers/all-MiniLM-L6-v2")
LAKE = os.environ.get("EXAMPLE_BACKEND", "lake")  # a name from mm.yaml, or a URL
MODEL = "embed/minilm"


@dag(schedule=None, catchup=False, tags=["models"])
def bring_and_use():
    pulled = PullModelOperator(
        task_id="pull", source=SOURCE, to=LAKE, model_id=MODEL, aliases=["candidate"]
    )

    @task
    def approve(version: dict) -> None:
        """Here stands what decides: an evaluation, or a person elsewhere with `mm alias set`."""
        with mm.ModelManager(backend=LAKE) as manager:
            manager.registry().set_alias(MODEL, "prod", version["version"])

    approved = ModelSensor(
        task_id="approved",
        reference=f"{MODEL}@prod",
        backend=LAKE,
        mode="reschedule",
        poke_interval=5,
        timeout=600,
    )

    @task
    def use(version: dict) -> list[str]:
        """On any worker: a verified folder, of the version that was approved and no other."""
        config = mm.get(version["reference"], backend=LAKE) / "config.json"
        return sorted(json.loads(config.read_text()))

    approve(pulled.output) >> approved
    use(approved.output)


made = bring_and_use()
