"""deploy/kubernetes without a cluster: the published schemas, the ways its parts find one another, and its times."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from gateway.config.loader import load_text
from tests.kit.program import ROOT

FOLDER = ROOT / "deploy/kubernetes"
KUBERNETES = "1.30"
"""The oldest version that the manifests are for."""
CUSTOM = {"podmonitor.yaml"}
"""Of kinds that Kubernetes itself does not know."""


def read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


LISTED: list[str] = read("kustomization.yaml")["resources"]
DEPLOYMENT = read("deployment.yaml")
POD = DEPLOYMENT["spec"]["template"]
[CONTAINER] = POD["spec"]["containers"]
SECRETS: dict[str, str] = read("secret.example.yaml")["stringData"]
FILLED_IN = dict.fromkeys(SECRETS, "http://filled-in") | {"STORE_URL": "redis://redis:6379/0"}
CONFIG = load_text((FOLDER / "config.yaml").read_text(encoding="utf-8"), environ=FILLED_IN)


@pytest.mark.parametrize("name", [*sorted({*LISTED} - CUSTOM), "secret.example.yaml"])
def test_manifest_is_what_its_schema_allows(name: str) -> None:
    kubernetes_validate.validate(read(name), KUBERNETES, strict=True)


def test_everything_is_listed() -> None:
    beside = {"kustomization.yaml", "config.yaml", "secret.example.yaml"}
    assert {path.name for path in FOLDER.glob("*.yaml")} - beside == set(LISTED)


def test_parts_find_one_another() -> None:
    labels = POD["metadata"]["labels"]
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == labels
    assert read("service.yaml")["spec"]["selector"] == labels
    assert read("disruption-budget.yaml")["spec"]["selector"]["matchLabels"] == labels
    monitor = read("podmonitor.yaml")["spec"]
    assert monitor["selector"]["matchLabels"] == labels
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert CONFIG.server.admin_listen is not None
    assert ports == {"http": CONFIG.server.listen.port, "admin": CONFIG.server.admin_listen.port}
    assert read("service.yaml")["spec"]["ports"][0]["targetPort"] in ports
    assert monitor["podMetricsEndpoints"][0]["port"] in ports
    [volume] = POD["spec"]["volumes"]
    [generated] = read("kustomization.yaml")["configMapGenerator"]
    assert volume["configMap"]["name"] == generated["name"]
    assert CONTAINER["envFrom"] == [{"secretRef": {"name": read("secret.example.yaml")["metadata"]["name"]}}]


def test_pod_outlives_its_drain() -> None:
    command, seconds = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert int(seconds) + CONFIG.server.drain < POD["spec"]["terminationGracePeriodSeconds"]


def test_no_secret_is_written_down_and_each_is_used() -> None:
    config = (FOLDER / "config.yaml").read_text(encoding="utf-8")
    assert set(SECRETS.values()) == {""}
    assert all(f"${{{name}}}" in config for name in SECRETS)


def test_image_runs_as_the_user_of_the_dockerfile() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert f"--uid {POD['spec']['securityContext']['runAsUser']} " in dockerfile
    assert CONTAINER["volumeMounts"] == [{"name": "config", "mountPath": "/etc/gateway", "readOnly": True}]
    assert "COPY config.yaml /etc/gateway/config.yaml" in dockerfile


def test_readme_names_the_values_that_stand_in_the_files() -> None:
    text = Path(FOLDER / "README.md").read_text(encoding="utf-8")
    grace = POD["spec"]["terminationGracePeriodSeconds"]
    assert f"`terminationGracePeriodSeconds: {grace}`" in text
    assert f"`server.drain: {CONFIG.server.drain:.0f}s`" in text
