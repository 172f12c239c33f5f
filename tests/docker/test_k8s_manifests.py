"""deploy/k8s: the manifests as written, and as kustomize puts them together where kubectl is at hand."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from services.kit.catalogue import DEPLOYED
from services.kit.settings import MIB, load_settings
from tests.support.deployment import ROOT, Tree, compose, own_services, prefix_of, settings_of

K8S = ROOT / "deploy/k8s"
GPU = tuple(entry.name for entry in DEPLOYED if entry.deployed == "default")
SHELF = tuple(entry.name for entry in DEPLOYED if entry.deployed == "shelf" and entry.gpu)
OVERLAYS = {"cpu": ("ocr", "rules"), "gpu": GPU, "shelf": tuple(entry.name for entry in DEPLOYED)}


def documents(path: Path) -> list[Tree]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def written() -> list[Tree]:
    """Every manifest of the bases, as it stands in its file."""
    paths = sorted((K8S / "base").rglob("*.yaml"))
    return [
        each for path in paths for each in documents(path) if "apiVersion" in each and each["kind"] != "Kustomization"
    ]


@cache
def rendered(overlay: str) -> list[Tree]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    command = ["kubectl", "kustomize", str(K8S / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def workloads(manifests: list[Tree]) -> list[Tree]:
    return [each for each in manifests if each["kind"] in {"Deployment", "StatefulSet"}]


def of_kind(manifests: list[Tree], kind: str) -> dict[str, Tree]:
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] == kind}


def container(workload: Tree) -> Tree:
    (found,) = workload["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def flags(workload: Tree) -> dict[str, str]:
    return {flag.removeprefix("--").partition("=")[0]: flag.partition("=")[2] for flag in container(workload)["args"]}


def test_every_kustomization_names_files_that_exist_and_none_is_left_over() -> None:
    used: set[Path] = set()
    kustomizations = sorted(K8S.rglob("kustomization.yaml"))
    for path in kustomizations:
        (tree,) = documents(path)
        for name in [*tree["resources"], *tree.get("configurations", [])]:
            target = (path.parent / name).resolve()
            assert target.exists(), f"{path}: {name}"
            used.add(target / "kustomization.yaml" if target.is_dir() else target)
    tops = {K8S / "overlays" / name / "kustomization.yaml" for name in (*OVERLAYS, "trainer")}
    # An overlay may stand on another.
    assert {path.resolve() for path in K8S.rglob("*.yaml")} - used == tops - used


@pytest.mark.parametrize("workload", workloads(written()), ids=lambda each: str(each["metadata"]["name"]))
def test_pods_are_confined(workload: Tree) -> None:
    """What the Pod Security Standard `restricted` asks for, and a read-only root on top."""
    confined(workload)


def confined(workload: Tree) -> None:
    pod = workload["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False  # or OCR_PORT would be read as a setting
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True and context["runAsUser"] > 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert not [volume for volume in pod["volumes"] if "hostPath" in volume] if "volumes" in pod else True
    inside = container(workload)
    assert inside["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert inside["resources"]["limits"]["memory"] and inside["resources"]["requests"]["cpu"]


@pytest.mark.parametrize("workload", workloads(written()), ids=lambda each: str(each["metadata"]["name"]))
def test_ports_probes_volumes_and_selectors_belong_together(workload: Tree) -> None:
    joined(workload)


def joined(workload: Tree) -> None:
    spec, inside = workload["spec"], container(workload)
    pod = spec["template"]["spec"]
    ports = {port["name"]: port["containerPort"] for port in inside["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        check = inside[probe].get("httpGet") or inside[probe].get("tcpSocket")
        assert check["port"] in ports if check else inside[probe]["exec"]["command"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    volumes |= {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])}
    assert {mount["name"] for mount in inside["volumeMounts"]} == volumes
    if "port" in flags(workload):
        assert int(flags(workload)["port"]) == ports["http"]


@pytest.mark.parametrize("role", ["front", "worker"])
def test_a_service_gets_flags_it_knows_and_time_to_drain(role: str) -> None:
    workload = of_kind(written(), "Deployment")[role]
    fields = settings_of("ocr").model_fields
    assert {flag.replace("-", "_") for flag in flags(workload)} <= set(fields)
    assert flags(workload)["role"] == role
    inside, pod = container(workload), workload["spec"]["template"]["spec"]
    assert inside["livenessProbe"]["httpGet"]["path"] == "/health"
    assert inside["readinessProbe"]["httpGet"]["path"] == "/ready"
    before = inside.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert pod["terminationGracePeriodSeconds"] >= before + fields["drain_s"].default + 10
    assert gibibytes(inside["resources"]["limits"]["memory"]) * 1024 * MIB > 1.5 * fields["max_memory_bytes"].default


def gibibytes(size: str) -> int:
    return int(size.removesuffix("Gi"))


def test_redis_keeps_jobs_and_drops_only_what_expires() -> None:
    """The same server with the same policy as in docker-compose.yml."""
    redis = container(of_kind(written(), "StatefulSet")["redis"])
    words = compose()["services"]["redis"]["command"].split()
    assert redis["args"] == words


def test_nothing_secret_is_in_the_manifests() -> None:
    assert not [each for each in written() if each["kind"] == "Secret"]
    text = "".join(path.read_text() for path in K8S.rglob("*.yaml"))
    assert "secretGenerator" not in text
    assert set(re.findall(r"secretName: ([\w-]+)", text)) == {"reward-tokens", "trainer-secrets"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_has_its_services_and_no_others(overlay: str) -> None:
    manifests = rendered(overlay)
    expected = {"redis"}
    for name in OVERLAYS[overlay]:
        expected |= {f"{name}-front"}
        if name not in {"vqa", "textjudge"}:  # they ask UnifiedReward's judge
            expected |= {f"{name}-vllm" if name in {"unifiedreward", "eval"} else f"{name}-worker"}
    assert {each["metadata"]["name"] for each in workloads(manifests)} == expected
    namespaces = {each["metadata"].get("namespace") for each in manifests if each["kind"] != "Namespace"}
    assert namespaces == {"rewards"}
    names = [(each["kind"], each["metadata"]["name"]) for each in manifests]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rendered_workloads_are_confined_and_whole(overlay: str) -> None:
    for workload in workloads(rendered(overlay)):
        confined(workload)
        joined(workload)
        image, _, tag = container(workload)["image"].rpartition(":")
        assert image and "/" not in tag, workload["metadata"]["name"]


def selected(manifests: list[Tree], selector: Tree) -> Iterator[Tree]:
    for workload in workloads(manifests):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        expressions = selector.get("matchExpressions", [])
        if selector.get("matchLabels", {}).items() <= labels.items() and all(
            expression["operator"] == "In" and labels.get(expression["key"]) in expression["values"]
            for expression in expressions
        ):
            yield workload


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_services_and_budgets_select_exactly_one_workload(overlay: str) -> None:
    manifests = rendered(overlay)
    for name, service in of_kind(manifests, "Service").items():
        (workload,) = selected(manifests, {"matchLabels": service["spec"]["selector"]})
        assert workload["metadata"]["name"] == name
        ports = {port["name"] for port in container(workload)["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for name, budget in of_kind(manifests, "PodDisruptionBudget").items():
        (workload,) = selected(manifests, budget["spec"]["selector"])
        assert workload["metadata"]["name"] == name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_workers_and_judges_scale_on_their_own_queue(overlay: str) -> None:
    manifests = rendered(overlay)
    deployments = of_kind(manifests, "Deployment")
    scaled = of_kind(manifests, "ScaledObject")
    assert set(scaled) == {name for name in deployments if not name.endswith("-front")}
    for name, scaling in scaled.items():
        service, _, part = name.partition("-")
        assert scaling["spec"]["scaleTargetRef"] == {"name": name}
        assert "replicas" not in deployments[name]["spec"]
        (trigger,) = scaling["spec"]["triggers"]
        metric = "reward_stream_depth" if part == "worker" else "vllm:num_requests_waiting"
        assert re.search(rf'{metric}\{{job="{service}"\}}', trigger["metadata"]["query"])
        assert scaling["spec"]["minReplicaCount"] >= 1


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_network_policies_admit_the_calls_that_are_made_and_deny_the_rest(overlay: str) -> None:
    manifests = rendered(overlay)
    policies = of_kind(manifests, "NetworkPolicy")
    assert policies["deny-all"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    ports = {
        workload["metadata"]["name"]: {port["name"] for port in container(workload)["ports"]}
        for workload in workloads(manifests)
    }
    for policy in policies.values():
        for rule in policy["spec"].get("ingress", []):
            for workload in selected(manifests, policy["spec"]["podSelector"]):
                assert {port["port"] for port in rule["ports"]} <= ports[workload["metadata"]["name"]]
    egress = policies["services"]["spec"]
    callers = {each["metadata"]["name"] for each in selected(manifests, egress["podSelector"])}
    assert callers == {name for name in ports if name.endswith(("-front", "-worker"))}
    for rule in egress["egress"]:
        for target in selected(manifests, rule["to"][0]["podSelector"]):
            assert {port["port"] for port in rule["ports"]} <= ports[target["metadata"]["name"]]
    (redis,) = policies["redis"]["spec"]["ingress"]
    assert {each["metadata"]["name"] for each in selected(manifests, redis["from"][0]["podSelector"])} == callers


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_service_accepts_its_flags_and_environment(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, deployment in of_kind(rendered(overlay), "Deployment").items():
        service, _, part = name.partition("-")
        if part == "vllm":
            continue
        inside = container(deployment)
        with monkeypatch.context() as patch:
            for variable in inside.get("env", []):
                assert variable["name"].removeprefix(prefix_of(service)).lower() in settings_of(service).model_fields
                patch.setenv(variable["name"], variable["value"])
            settings = load_settings(settings_of(service), inside["args"])
        judged = service in {"unifiedreward", "eval", "vqa", "textjudge"}
        assert settings.role == ("all" if judged else part) and settings.host == "0.0.0.0", name


@pytest.mark.parametrize("service", ["unifiedreward", "eval"])
def test_gateways_ask_their_judge_as_in_compose(service: str) -> None:
    deployments = of_kind(rendered("gpu"), "Deployment")
    front, judge = flags(deployments[f"{service}-front"]), flags(deployments[f"{service}-vllm"])
    fields = settings_of(service).model_fields
    assert {flag.replace("-", "_") for flag in front} <= set(fields) and front["role"] == "all"
    assert front["judge-url"] == f"http://{service}-vllm:{judge['port']}"
    assert (
        front["model"]
        == judge["served-model-name"]
        == own_services()[service]["environment"][f"{service.upper()}_MODEL"]
    )
    command = compose()["services"][f"{service}-vllm"]["command"]
    for flag in ("served-model-name", "max-model-len", "limit-mm-per-prompt", "allowed-media-domains"):
        assert f"--{flag}={judge[flag]}" in command
    image = container(deployments[f"{service}-vllm"])["image"]
    assert image == compose()["services"][f"{service}-vllm"]["image"]
    volumes = deployments[f"{service}-vllm"]["spec"]["template"]["spec"]["volumes"]
    assert {"name": "model", "persistentVolumeClaim": {"claimName": f"{service}-model", "readOnly": True}} in volumes


@pytest.mark.parametrize("service", ["hps", "clip", *SHELF])
def test_every_worker_with_a_model_has_a_gpu_and_every_pod_the_weights(service: str) -> None:
    deployments = of_kind(rendered("shelf"), "Deployment")
    limits = {part: container(deployments[f"{service}-{part}"])["resources"]["limits"] for part in ("front", "worker")}
    assert limits["worker"]["nvidia.com/gpu"] == "1" and "nvidia.com/gpu" not in limits["front"]
    for part in limits:
        pod = deployments[f"{service}-{part}"]["spec"]["template"]["spec"]
        inside = container(deployments[f"{service}-{part}"])
        given = {variable["name"]: variable["value"] for variable in inside["env"]}
        assert given[f"{prefix_of(service)}DTYPE"] == "bf16"
        assert any(value.startswith("/model") for value in given.values())
        assert {"name": "model", "mountPath": "/model", "readOnly": True} in inside["volumeMounts"]
        claim = {"claimName": f"{service}-model", "readOnly": True}
        assert {"name": "model", "persistentVolumeClaim": claim} in pod["volumes"]
