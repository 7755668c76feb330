"""Runs the DAG beside it once, as `dag.test` does, with folders for the source and the backend."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path


def main(scratch: Path) -> None:
    here = Path(__file__).resolve().parent
    (scratch / "model").mkdir()
    (scratch / "model/config.json").write_text('{"size": 4}')
    os.environ.update(
        AIRFLOW_HOME=str(scratch / "airflow"),
        AIRFLOW__CORE__LOAD_EXAMPLES="false",
        AIRFLOW__CORE__DAGS_FOLDER=str(here),
        EXAMPLE_SOURCE=str(scratch / "model"),
        EXAMPLE_BACKEND=str(scratch / "store"),
    )
    subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=True)
    sys.path.insert(0, str(here))
    from dag import made

    state = made.test().state
    print("state:", getattr(state, "value", state))
    if "success" not in str(state).lower():
        sys.exit(1)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
