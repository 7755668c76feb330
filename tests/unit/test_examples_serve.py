"""The files in examples/serve: they can be read, their settings hold, and they agree with each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mm_core import load_settings, service_of
from mm_core.cli import main
from mm_core.manager import ModelManager

pytestmark = pytest.mark.unit

FOLDER = Path(__file__).parents[2] / "examples" / "serve"
SYNC = FOLDER.with_name("sync")
CONTAINER = (FOLDER / "Containerfile").read_text()
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
KUBERNETES = {
    document["kind"]: document
    for document in yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
}
POD = KUBERNETES["Deployment"]["spec"]["template"]["spec"]
UID = int(re.search(r"--uid (\d+)", CONTAINER)[1])
CONFIG = re.search(r"MM_CONFIG=(\S+)", CONTAINER)[1]


def settings_of(tmp_path, text: str):
    """The section ``serve``, checked as `mm serve` checks it, and all settings."""
    file = tmp_path / "mm.yaml"
    file.write_text(text)
    settings = load_settings(file)
    with ModelManager(settings) as manager:
        return service_of(manager).config, settings


def test_the_image():
    """Runs without root, by the extras that there are, and asks itself whether it is well."""
    project = (FOLDER.parents[1] / "pyproject.toml").read_text()
    name, extras = re.search(r'pip install[^"]*"([\w-]+)\[([\w,]+)\]"', CONTAINER).groups()
    assert f'name = "{name}"' in project
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras.split(","))
    assert f"USER {UID}" in CONTAINER
    assert "8080/healthz" in CONTAINER
    assert "EXPOSE 8080" in CONTAINER


def test_compose(tmp_path):
    """The settings name the store beside it, and the file is where the image looks for it."""
    hub, store = COMPOSE["services"]["hub"], COMPOSE["services"]["seaweedfs"]
    serve, settings = settings_of(tmp_path, (FOLDER / "mm.yaml").read_text())
    assert hub["ports"] == [f"127.0.0.1:8080:{serve.port}"]
    assert hub["volumes"] == [f"./mm.yaml:{CONFIG}:ro"]
    assert (FOLDER / hub["build"]["dockerfile"]).exists()
    assert int(hub["stop_grace_period"].rstrip("s")) > serve.drain
    root, options = (settings.backends["lake"].values[name] for name in ("root", "options"))
    port = re.search(r"-s3.port=(\d+)", store["command"])[1]
    assert options["endpoint_url"] == f"http://seaweedfs:{port}"
    bucket = root.removeprefix("s3://").partition("/")[0]
    assert f"-name {bucket}'" in COMPOSE["services"]["bucket"]["entrypoint"][2]


def test_kubernetes(tmp_path):
    """Probes and ports are those of the hub, the drain fits the grace period, nothing runs as root."""
    (container,) = POD["containers"]
    serve, _ = settings_of(tmp_path, KUBERNETES["ConfigMap"]["data"]["mm.yaml"])
    assert container["ports"][0]["containerPort"] == serve.port
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert POD["terminationGracePeriodSeconds"] > serve.drain
    assert POD["securityContext"]["runAsUser"] == UID
    assert container["securityContext"]["readOnlyRootFilesystem"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts[str(Path(CONFIG).parent)] == "config"
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert set(mounts.values()) == set(volumes)
    assert volumes["config"]["configMap"]["name"] == KUBERNETES["ConfigMap"]["metadata"]["name"]
    labels = KUBERNETES["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        KUBERNETES["Deployment"]["spec"]["selector"]["matchLabels"],
        KUBERNETES["Service"]["spec"]["selector"],
        KUBERNETES["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    assert serve.anonymous_read is None


def test_each_schedule_runs_a_command_that_there_is(tmp_path, monkeypatch, capsys):
    """As `mm` itself reads it."""
    monkeypatch.chdir(tmp_path)
    lines = {
        "crontab": re.search(r"&& (mm .*?) >>", (SYNC / "crontab").read_text())[1],
        "systemd": re.search(r"ExecStart=(.*)", (SYNC / "mm-sync.service").read_text())[1],
        "kubernetes": yaml.safe_load((SYNC / "cronjob.yaml").read_text())["spec"]["jobTemplate"][
            "spec"
        ]["template"]["spec"]["containers"][0]["args"][0].replace(
            "$((JOB_COMPLETION_INDEX + 1))", "1"
        ),
    }
    for line in lines.values():
        program, *words = line.split()
        assert program == "mm"
        assert main(words) == 2
        assert "mm.yaml names no models" in capsys.readouterr().err


def test_the_parts_are_as_many_as_the_pods():
    """Each index of the job is a shard."""
    job = yaml.safe_load((SYNC / "cronjob.yaml").read_text())["spec"]["jobTemplate"]["spec"]
    args = job["template"]["spec"]["containers"][0]["args"][0]
    assert args.endswith(f"/{job['completions']}")
    assert job["parallelism"] == job["completions"]
