"""The examples of a hub in containers: each file loads, and they agree with each other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from mm_core import Plugins
from mm_core.config import build_config, load_settings, parse_duration, validate
from mm_plugins.hub import HubService

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "serve"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
KUBERNETES = {
    one["kind"]: one for one in yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
}
POD = KUBERNETES["Deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


def image() -> dict[str, list[str]]:
    """The instructions of the Containerfile, by name."""
    text = (FOLDER / "Containerfile").read_text().replace("\\\n", "")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            found.setdefault(name, []).append(rest)
    return found


IMAGE = image()
CONFIG_FILE = IMAGE["ENV"][0].removeprefix("MM_CONFIG=")
SETTINGS = {
    "compose": (FOLDER / "mm.yaml").read_text(),
    "kubernetes": KUBERNETES["ConfigMap"]["data"][Path(CONFIG_FILE).name],
}


@pytest.fixture(params=SETTINGS)
def settings(request, tmp_path):
    """Each mm.yaml, as mm loads it."""
    (tmp_path / "mm.yaml").write_text(SETTINGS[request.param])
    return load_settings(environ={}, cwd=tmp_path)


def hub(kind: str):
    return HubService.Config(**yaml.safe_load(SETTINGS[kind])["serve"])


def test_the_settings_are_good(settings):
    """For mm itself, for the plugins, and for the hub."""
    assert validate(settings, Plugins.discover()) == []
    config = build_config(HubService.Config, settings.serve.values, "serve", settings)
    assert settings.defaults.backend in settings.backends
    assert config.host == "0.0.0.0"
    assert [str(config.port)] == IMAGE["EXPOSE"]


def test_the_image():
    """Extras that there are, nobody who is root, a check of the port, and no shell before mm."""
    pyproject = (ROOT / "pyproject.toml").read_text()
    name, extras = re.search(r'"([\w-]+)\[([\w,]+)\]"', IMAGE["RUN"][0]).groups()
    assert f'name = "{name}"' in pyproject
    assert all(re.search(rf"^{extra} = \[", pyproject, re.MULTILINE) for extra in extras.split(","))
    assert int(IMAGE["USER"][0]) > 0
    assert json.loads(IMAGE["CMD"][0]) == ["mm", "serve"]
    (check,) = IMAGE["HEALTHCHECK"]
    python, dash_c, code = json.loads(check[check.index("[") :])
    assert (python, dash_c) == ("python", "-c")
    compile(code, "HEALTHCHECK", "exec")
    assert f"'127.0.0.1', {IMAGE['EXPOSE'][0]}," in code
    assert "'/healthz'" in code


def test_compose_agrees():
    """Ports, places, the store's address and bucket, credentials, and the time to stop."""
    served, store = COMPOSE["services"]["hub"], COMPOSE["services"]["store"]
    assert served["ports"] == [f"127.0.0.1:8080:{hub('compose').port}"]
    outside, inside, _ = served["volumes"][0].split(":")
    assert (FOLDER / outside).is_file()
    assert inside == CONFIG_FILE
    assert (FOLDER / served["build"]["dockerfile"]).is_file()
    lake = yaml.safe_load(SETTINGS["compose"])["backends"]["lake"]
    assert lake["options"]["endpoint_url"] == "http://store:8333"
    assert f"-bucket={lake['root'].split('/')[2]}" in store["command"]
    assert served["environment"] == store["environment"]
    assert parse_duration(served["stop_grace_period"]) > hub("compose").drain


def test_kubernetes_agrees():
    """Probes, ports, the place of the settings, labels, and the time to stop."""
    config = hub("kubernetes")
    (port,) = CONTAINER["ports"]
    assert port["containerPort"] == config.port
    assert CONTAINER["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": port["name"]}
    assert CONTAINER["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": port["name"]}
    service = KUBERNETES["Service"]["spec"]
    assert service["ports"][0]["targetPort"] == port["name"]
    before = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert POD["terminationGracePeriodSeconds"] > before + config.drain
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in POD["volumes"]}
    assert mounts["config"] == str(Path(CONFIG_FILE).parent)
    assert mounts["home"] == IMAGE["WORKDIR"][0]
    (volume,) = (one for one in POD["volumes"] if one["name"] == "config")
    assert volume["configMap"]["name"] == KUBERNETES["ConfigMap"]["metadata"]["name"]
    deployment = KUBERNETES["Deployment"]["spec"]
    budget = KUBERNETES["PodDisruptionBudget"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert labels == service["selector"] == deployment["selector"]["matchLabels"]
    assert labels == budget["selector"]["matchLabels"]
    assert budget["minAvailable"] < deployment["replicas"] == 2


def test_the_pod_may_little():
    """Not root, nothing of its image may change, and no credential stands in the file."""
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["runAsUser"] == int(IMAGE["USER"][0])
    context = CONTAINER["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    keys = {one["name"]: one for one in CONTAINER["env"]}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        reference = keys[name]["valueFrom"]["secretKeyRef"]
        made = rf"secret generic {reference['name']} .*--from-literal={reference['key']}="
        assert re.search(made, (FOLDER / "README.md").read_text())
