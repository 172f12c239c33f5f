"""deploy/k8s/base/trainer: the run's manifests, and every overlay against the schemas of Kubernetes' API."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml

from rewards.shipped import recipe
from tests.docker.test_k8s_manifests import K8S, ROOT, Tree, documents, gibibytes, of_kind, rendered, selected
from tests.support.documents import blocks_of
from trainer.config import Config
from trainer.config.file import load_config
from trainer.processes.failure import FAILED, LOST, USER_ERROR
from trainer.processes.launch import SHUTDOWN_S

TRAINER = K8S / "base/trainer"
OLDEST, OF_SERVICES, NEWEST = "1.31", "1.30", "1.37"  # as the two pages say; the newest that there are schemas of
# Kinds that are no part of Kubernetes: KEDA's and the Prometheus operator's.
OF_OTHERS = {"ScaledObject", "PodMonitor"}


def jobs() -> dict[str, Tree]:
    found = [each for path in sorted(TRAINER.glob("*.yaml")) for each in documents(path)]
    return of_kind(found, "Job")


def inside(job: Tree) -> Tree:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def variables(job: Tree) -> dict[str, Any]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in inside(job)["env"]}


@pytest.mark.parametrize(
    ("overlay", "version"),
    [
        ("trainer", OLDEST),
        ("trainer", NEWEST),
        ("cpu", OF_SERVICES),
        pytest.param("shelf", OF_SERVICES, marks=pytest.mark.slow),
        pytest.param("shelf", NEWEST, marks=pytest.mark.slow),
    ],
)
def test_every_manifest_is_what_the_api_takes(overlay: str, version: str) -> None:
    """Strictly: a field that the API does not have is one too many."""
    manifests = rendered(overlay)
    checked = [each for each in manifests if each["kind"] not in OF_OTHERS]
    assert len(checked) > 8
    for each in checked:
        kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize(
    "change",
    [
        {"completions": "two"},
        {"completionsMode": "Indexed"},
        {"podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": ["2"]}}]}},
    ],
)
def test_a_manifest_that_is_wrong_is_refused(change: dict[str, Any]) -> None:
    job = jobs()["train"]
    kubernetes_validate.validate(job, OLDEST, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**job, "spec": {**job["spec"], **change}}, OLDEST, strict=True)


@pytest.mark.parametrize("name", ["fetch", "train"])
def test_pods_of_a_run_are_confined(name: str) -> None:
    """What the Pod Security Standard `restricted` asks for, and a read-only root on top."""
    job = jobs()[name]
    pod, container = job["spec"]["template"]["spec"], inside(job)
    assert pod["automountServiceAccountToken"] is False and pod["restartPolicy"] == "Never"
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True and context["seccompProfile"] == {"type": "RuntimeDefault"}
    dockerfile = (ROOT / "docker/trainer.Dockerfile").read_text(encoding="utf-8")
    assert f"USER {context['runAsUser']}:{context['runAsGroup']}" in dockerfile
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["cpu"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert {volume["name"] for volume in pod["volumes"] if "hostPath" in volume} == set()
    # What is written by the image lies under a mount: HOME is /tmp, the recipe's paths count from /app.
    written = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert written == (
        {"/tmp", "/app/models", "/app/data"} if name == "fetch" else {"/tmp", "/dev/shm", "/app/outputs"}
    )
    assert "HOME=/tmp" in dockerfile and "WORKDIR /app" in dockerfile


def test_the_nodes_of_a_run_meet_and_are_as_many_as_train_sh_is_told() -> None:
    job = jobs()["train"]
    spec, given = job["spec"], variables(job)
    service = of_kind(documents(TRAINER / "train.yaml"), "Service")["train"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"] == int(given["NNODES"])
    limits, requests = (inside(job)["resources"][each]["nvidia.com/gpu"] for each in ("limits", "requests"))
    assert limits == requests == given["NGPUS"]
    assert given["NODE_RANK"]["fieldRef"]["fieldPath"].endswith("['batch.kubernetes.io/job-completion-index']")
    # A pod of an indexed Job is called <job>-<index>, under its Service's name.
    pod, name = spec["template"], job["metadata"]["name"]
    assert given["MASTER_ADDR"] == f"{name}-0.{pod['spec']['subdomain']}"
    assert pod["spec"]["subdomain"] == service["metadata"]["name"] and service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert service["spec"]["publishNotReadyAddresses"] is True
    (port,) = inside(job)["ports"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    assert str(port["containerPort"]) == given["MASTER_PORT"]
    said = dry_run(job, rank=1)
    assert f"--nproc {given['NGPUS']} " in said and f"--nnodes {given['NNODES']} --node-rank 1 " in said
    assert f"--master-addr {given['MASTER_ADDR']} --master-port {given['MASTER_PORT']} " in said


def dry_run(job: Tree, rank: int) -> str:
    """What train.sh would start with the Job's variables and words."""
    given = {name: value for name, value in variables(job).items() if isinstance(value, str)}
    environment = {**os.environ, **given, "NODE_RANK": str(rank), "DRY_RUN": "1"}
    command = ["bash", str(ROOT / "train.sh"), *inside(job)["args"]]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_words_of_the_job_are_a_recipe_that_its_gpus_can_run() -> None:
    job = jobs()["train"]
    path, *overrides = inside(job)["args"]
    config = load_config(ROOT / path, Config, overrides)
    ranks = int(variables(job)["NNODES"]) * int(variables(job)["NGPUS"])
    assert config.sampling.prompts_per_step % ranks == 0
    (service,) = config.rewards.services.values()
    assert service.urls == ("http://ocr-front.rewards",)
    secret = next(each for each in job["spec"]["template"]["spec"]["volumes"] if "secret" in each)
    (mount,) = [each for each in inside(job)["volumeMounts"] if each["name"] == secret["name"]]
    (item,) = secret["secret"]["items"]
    assert service.token_file == f"{mount['mountPath']}/{item['path']}"
    probe = inside(job)["readinessProbe"]["exec"]["command"]
    assert probe[-1] == f"/app/{config.output_dir}/{config.run_name}/metrics.jsonl"
    (fetched,) = inside(jobs()["fetch"])["args"]
    assert recipe(fetched) == ROOT / path


def test_what_is_explained_is_not_tried_again_and_what_is_lost_is() -> None:
    spec = jobs()["train"]["spec"]
    ignored, failed = spec["podFailurePolicy"]["rules"]
    assert ignored == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert failed["action"] == "FailJob" and failed["onExitCodes"]["values"] == sorted([FAILED, USER_ERROR])
    assert LOST not in failed["onExitCodes"]["values"]
    assert failed["onExitCodes"]["containerName"] == inside(jobs()["train"])["name"]
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] >= SHUTDOWN_S + 30
    assert spec["suspend"] is True
    assert gibibytes(inside(jobs()["train"])["resources"]["limits"]["memory"]) >= 256


def test_the_policies_let_a_run_reach_its_nodes_its_rewards_and_no_one_else() -> None:
    manifests = rendered("trainer")
    policies = of_kind(manifests, "NetworkPolicy")
    assert policies["deny-all"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    services = rendered("cpu")
    (reached,) = policies["rewards"]["spec"]["egress"]
    (target,) = reached["to"]
    fronts = [each["metadata"]["name"] for each in selected(services, target["podSelector"])]
    assert "ocr-front" in fronts and all(name.endswith("-front") for name in fronts)
    named = {
        each["metadata"]["name"]: each["metadata"]["labels"]
        for each in [*services, *manifests]
        if each["kind"] == "Namespace"
    }
    client = of_kind(services, "NetworkPolicy")["clients"]["spec"]["ingress"][0]["from"][1]["namespaceSelector"][
        "matchLabels"
    ]
    assert client.items() <= named["training"].items()
    asked = target["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    assert asked in named
    allowed = {name: policy["spec"]["podSelector"] for name, policy in policies.items() if "egress" in policy["spec"]}
    assert allowed["hub"] == {"matchLabels": jobs()["fetch"]["spec"]["template"]["metadata"]["labels"]}


def test_the_page_names_what_is_there() -> None:
    page = ROOT / "docs/trainer_on_kubernetes.md"
    text = page.read_text(encoding="utf-8")
    assert f"Kubernetes {OLDEST} or newer" in text
    assert f"Kubernetes {OF_SERVICES} or newer" in (ROOT / "docs/kubernetes.md").read_text(encoding="utf-8")
    assert {path.name for path in TRAINER.glob("*.yaml")} - {"kustomization.yaml"} == {
        line.split("`")[1] for line in text.splitlines() if line.startswith("| `") and ".yaml`" in line.split("|")[1]
    }
    typed = "\n".join(block.text for block in blocks_of(page))
    secret = {key for job in jobs().values() for key in _keys(job)}
    assert all(f"--from-file={key}" in typed for key in secret) and len(secret) == 3
    claims = yaml.safe_load((TRAINER / "files.yaml").read_text(encoding="utf-8"))
    assert claims["metadata"]["name"] in text and claims["spec"]["accessModes"] == ["ReadWriteMany"]


def _keys(tree: Any) -> set[str]:
    """The keys of the Secret that a manifest reads."""
    if isinstance(tree, dict):
        own = {tree["secretKeyRef"]["key"]} if "secretKeyRef" in tree else set()
        own |= {item["key"] for item in tree["secret"]["items"]} if "secret" in tree else set()
        return own.union(*(_keys(each) for each in tree.values()))
    return set().union(*(_keys(each) for each in tree)) if isinstance(tree, list) else set()
