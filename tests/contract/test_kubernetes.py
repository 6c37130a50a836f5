"""The Kubernetes manifests: valid by Kubernetes' own schemas, strictly, and in step with the compose file and the settings."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate import ValidationError

from leverplus.web import read_settings
from pointer_trainer.settings import TrainerSettings, WorkerSettings
from selector_api.settings import SelectorSettings
from vqa_scorer.settings import ScorerSettings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
VERSIONS = ("1.28", "1.32", "1.37")
OURS = {
    "vqa-scorer": ("vqa_scorer", ScorerSettings, "LEVERPLUS_SCORER_PORT"),
    "pointer-trainer": ("pointer_trainer", TrainerSettings, "LEVERPLUS_TRAINER_PORT"),
    "trainer-worker": ("trainer_worker", WorkerSettings, None),
    "selector-api": ("selector_api", SelectorSettings, "LEVERPLUS_SELECTOR_PORT"),
}
"""Workload -> service of the compose file, settings, the variable of its port."""
NOT_OURS = {"OMP_NUM_THREADS", "MPLCONFIGDIR", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"}
"""Variables that libraries read."""


@cache
def kustomization() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "kustomization.yaml").read_text())


def manifests() -> Iterator[dict[str, Any]]:
    for name in [*kustomization()["resources"], "secrets.example.yaml"]:
        yield from yaml.safe_load_all((FOLDER / name).read_text())


def of_kind(*kinds: str) -> dict[str, dict[str, Any]]:
    return {found["metadata"]["name"]: found for found in manifests() if found["kind"] in kinds}


def workloads() -> dict[str, dict[str, Any]]:
    return of_kind("Deployment", "StatefulSet")


def pod_of(name: str) -> dict[str, Any]:
    return workloads()[name]["spec"]["template"]["spec"]


def container_of(name: str) -> dict[str, Any]:
    [container] = pod_of(name)["containers"]
    return container


@cache
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def environment(name: str) -> dict[str, str]:
    """What a container's variables are, values of secrets and configuration put in."""
    sources = {
        (kind, found["metadata"]["name"]): {**found.get("data", {}), **found.get("stringData", {})}
        for kind, key in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret"))
        for found in of_kind(key).values()
    }
    values: dict[str, str] = {}
    for variable in container_of(name).get("env", []):
        if "value" in variable:
            values[variable["name"]] = variable["value"]
        else:
            [(kind, reference)] = variable["valueFrom"].items()
            values[variable["name"]] = sources[kind, reference["name"]][reference["key"]]
    for source in container_of(name).get("envFrom", []):
        values |= sources["secretKeyRef", source["secretRef"]["name"]]
    return values


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid(version: str) -> None:
    found = list(manifests())
    assert len(found) >= 20
    for manifest in found:
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "replicas"), "eight"),
        (("spec", "replica"), 8),
        (("spec", "template", "spec", "securityContext", "runAsNonroot"), True),
        (("spec", "template", "spec", "containers", 0, "ports", 0, "containerPort"), "http"),
        (("spec", "template", "spec", "containers", 0, "readinessProbe", "httpGet", "port"), None),
        (("spec", "selector"), None),
    ],
)
def test_a_wrong_manifest_is_refused(path: tuple[str | int, ...], value: object) -> None:
    manifest = copy.deepcopy(workloads()["vqa-scorer"])
    inner: Any = manifest
    for part in path[:-1]:
        inner = inner[part]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    with pytest.raises(ValidationError):
        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)


def test_the_kustomization_names_every_file() -> None:
    there = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml", "secrets.example.yaml"}
    assert set(kustomization()["resources"]) == there
    assert kustomization()["namespace"] in of_kind("Namespace")
    images = {container_of(name)["image"] for name in OURS}
    assert {image["name"] for image in kustomization()["images"]} == images


@pytest.mark.parametrize("name", OURS)
def test_images_commands_and_ports_are_those_of_compose(name: str) -> None:
    service, settings, port_variable = OURS[name]
    theirs, container = compose()[service], container_of(name)
    assert container["image"] == theirs["image"]
    assert container.get("command") == theirs.get("command")
    if port_variable is None:
        assert "ports" not in container
        return
    [port] = [each["containerPort"] for each in container["ports"]]
    assert [str(port)] == [each.rpartition(":")[2] for each in theirs["ports"]]
    assert settings.model_fields["port"].default == port
    assert settings.model_fields["port"].validation_alias == port_variable
    [exposed] = of_kind("Service")[name]["spec"]["ports"]
    assert exposed["port"] == port
    assert exposed["targetPort"] == container["ports"][0]["name"]


@pytest.mark.parametrize("name", OURS)
def test_variables_are_those_that_the_settings_read(name: str, tmp_path: Path) -> None:
    _, settings, _ = OURS[name]
    known = {str(field.validation_alias) for field in settings.model_fields.values()}
    given = environment(name)
    assert set(given) - NOT_OURS <= known, "a variable that nobody reads"
    read = read_settings(settings, given)
    assert str(read.data) == "/data"
    assert read.shared == "s3://leverplus/production"
    if isinstance(read, ScorerSettings | TrainerSettings | SelectorSettings):
        assert not read.allow_anonymous
        mounted = {mount["mountPath"] for mount in container_of(name)["volumeMounts"]}
        assert read.keys is not None
        assert str(read.keys.parent) in mounted
        assert read.keys.name in of_kind("Secret")["leverplus-keys"]["stringData"]
    if isinstance(read, WorkerSettings):
        assert read.scorer_key is not None


def test_jobs_know_every_scorer() -> None:
    replicas, name = workloads()["vqa-scorer"]["spec"]["replicas"], "vqa-scorer"
    read = read_settings(WorkerSettings, environment("trainer-worker"))
    assert list(read.scorer_urls) == [f"http://{name}-{number}.{name}:8001" for number in range(replicas)]
    assert of_kind("Service")[name]["spec"]["clusterIP"] == "None"
    assert workloads()[name]["spec"]["serviceName"] == name


@pytest.mark.parametrize("name", ["redis", *OURS])
def test_no_pod_may_more_than_a_container_of_compose(name: str) -> None:
    pod, container = pod_of(name), container_of(name)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container["resources"]["limits"]
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    claims = {claim["metadata"]["name"] for claim in workloads()[name]["spec"].get("volumeClaimTemplates", [])}
    named = {volume["name"] for volume in pod.get("volumes", [])} | claims
    assert {mount["name"] for mount in container["volumeMounts"]} == named


@pytest.mark.parametrize("name", [name for name, (_, _, port) in OURS.items() if port is not None])
def test_probes_ask_what_the_services_answer(name: str) -> None:
    container = container_of(name)
    document = yaml.safe_load((ROOT / "docs" / "openapi" / f"{OURS[name][0]}.json").read_text())
    for probe, path in (("startupProbe", "live"), ("livenessProbe", "live"), ("readinessProbe", "ready")):
        asked = container[probe]["httpGet"]
        assert asked == {"path": f"/health/{path}", "port": container["ports"][0]["name"]}
        assert asked["path"] in document["paths"]


def test_the_workers_probe_is_that_of_compose() -> None:
    command = container_of("trainer-worker")["livenessProbe"]["exec"]["command"]
    assert command == compose()["trainer_worker"]["healthcheck"]["test"][1:]
    assert environment("trainer-worker")["LEVERPLUS_WORKER_PULSE"] in command[-1]


def test_only_the_scorers_hold_a_gpu_and_selectors_scale() -> None:
    assert {name for name in workloads() if "nvidia.com/gpu" in container_of(name)["resources"]["limits"]} == {"vqa-scorer"}
    scaler = of_kind("HorizontalPodAutoscaler")["selector-api"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == "selector-api"
    assert of_kind("PodDisruptionBudget")["selector-api"]["spec"]["minAvailable"] < scaler["minReplicas"]
    assert workloads()["pointer-trainer"]["spec"]["strategy"] == {"type": "Recreate"}


def test_what_may_be_reached_is_stated() -> None:
    policies = of_kind("NetworkPolicy")
    assert policies["default-deny"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    ports = {each["containerPort"] for name in ("redis", *OURS) for each in container_of(name).get("ports", [])}
    let_in = {
        port["port"] for policy in policies.values() for rule in policy["spec"].get("ingress", []) for port in rule["ports"]
    }
    assert let_in == ports
