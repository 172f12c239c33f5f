"""The list of services: what is on disk is on it, its numbers are the services' own, and what is deployed is so everywhere.

What a new service lacks is printed with the lines to add; one that is not deployed lacks nothing but its folder.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from services.kit.catalogue import CATALOGUE, DEPLOYED, Entry
from tests.support.deployment import ROOT, prefix_of, settings_of
from trainer.config import URL_VARIABLES
from trainer.config.service_names import REWARDS

COMPOSE = """  {name}:
    <<: *service{profile}
    image: {image}:${{TAG:-latest}}
    build:
      context: .
      dockerfile: docker/service.Dockerfile
      args: {{SERVICE: {name}, PORT: "{port}"}}
    environment:
      {prefix}HOST: 0.0.0.0
      {prefix}TOKEN_FILE: /run/secrets/reward_tokens
      {prefix}REDIS: redis://redis:6379/0{gpu}
    mem_limit: ${{{prefix}MEMORY:-6g}}
    ports: ["${{BIND_ADDRESS:-127.0.0.1}}:{port}:{port}"]
    healthcheck: *healthcheck"""
GPU = """
    deploy:
      resources:
        reservations:
          devices:
            - driver: nvidia
              device_ids: ["${{{prefix}GPU:-${{HPS_GPU:-}}}}"]
              capabilities: [gpu]"""
PROMETHEUS = """  - job_name: {name}
    authorization: {{credentials_file: /run/secrets/metrics_token}}
    dns_sd_configs: [{{names: [{name}], type: A, port: {port}, refresh_interval: 15s}}]"""
SAMPLES = """def samples() -> Mapping[str, Sample]:   # by reward, what it scores well; the scorer's `samples` are these
    return {"its reward": Sample("a prompt", (image,))}"""
KUSTOMIZATION = """apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../../base/front, ../../base/worker]
namePrefix: {name}-
labels: [{{pairs: {{app.kubernetes.io/name: {name}}}, includeSelectors: true}}]
images: [{{name: rewards-service, newName: {image}}}]"""


def lacking(entry: Entry, prefix: str) -> dict[str, str]:
    """What a deployed service has no entry in, with what to add there. `prefix`: of its variables, such as OCR_."""
    if entry.deployed is None:
        return {}
    words = {**dataclasses.asdict(entry), "image": entry.image, "prefix": prefix}
    words["profile"] = "\n    profiles: [shelf]" if entry.deployed == "shelf" else ""
    words["gpu"] = GPU.format(**words) if entry.gpu else ""
    overlay = f"deploy/k8s/overlays/{'gpu' if entry.deployed == 'default' else 'shelf'}/kustomization.yaml"
    found = {}
    if not _in_compose(entry):
        found["docker-compose.yml"] = COMPOSE.format(**words)
    if not _in_prometheus(entry):
        found["docker/prometheus/prometheus.yml"] = PROMETHEUS.format(**words)
    manifest = f"deploy/k8s/services/{entry.name}/kustomization.yaml"
    if not (ROOT / manifest).is_file():
        found[manifest] = KUSTOMIZATION.format(**words)
    if f"../../services/{entry.name}" not in yaml.safe_load((ROOT / overlay).read_text())["resources"]:
        found[overlay] = f"  - ../../services/{entry.name}"
    if not (ROOT / f"requirements/services/{entry.name}.in").is_file():
        found[f"requirements/services/{entry.name}.in"] = "-r kit.in   # and what it imports"
    if not (ROOT / f"services/{entry.name}/samples.py").is_file():
        found[f"services/{entry.name}/samples.py"] = SAMPLES
    if not (ROOT / f"docs/openapi/{entry.name}.json").is_file():
        found[f"docs/openapi/{entry.name}.json"] = "run `make openapi`"
    if not re.search(
        rf"^\| `{re.escape(entry.module)}` \| {entry.port} \|", (ROOT / "docs/services.md").read_text(), re.M
    ):
        found["docs/services.md"] = f"| `{entry.module}` | {entry.port} | its rewards | their scores |"
    if URL_VARIABLES.get(entry.name) != entry.url_variable:
        found["trainer/config/rewards.py"] = f'    "{entry.name}": "{entry.url_variable}",   # in URL_VARIABLES'
    if entry.name not in REWARDS:
        found["trainer/config/service_names.py"] = f'    "{entry.name}": ("its", "rewards"),   # in REWARDS'
    return found


def _in_compose(entry: Entry) -> bool:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    service = services.get(entry.name)
    return (
        service is not None
        and service["build"]["args"] == {"SERVICE": entry.name, "PORT": str(entry.port)}
        and service["image"] == f"{entry.image}:${{TAG:-latest}}"
        and service.get("profiles") == (["shelf"] if entry.deployed == "shelf" else None)
        and ("deploy" in service) is entry.gpu
    )


def _in_prometheus(entry: Entry) -> bool:
    jobs = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())["scrape_configs"]
    return any(job["job_name"] == entry.name and job["dns_sd_configs"][0]["port"] == entry.port for job in jobs)


def test_every_service_on_disk_is_on_the_list() -> None:
    folders = {path.parent.name for path in (ROOT / "services").glob("*/__main__.py")}
    names = [entry.name for entry in CATALOGUE]
    assert folders == set(names), "add what is missing to CATALOGUE in services/kit/catalogue.py, such as " + ", ".join(
        f'Entry("{name}", {max(entry.port for entry in CATALOGUE) + 1})' for name in folders - set(names)
    )
    assert len(set(names)) == len(names)
    assert len({entry.port for entry in CATALOGUE}) == len(CATALOGUE), "two services have one port"
    assert len({entry.url_variable for entry in DEPLOYED}) == len(DEPLOYED), "two services have one variable"


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_the_port_is_the_settings_own(entry: Entry) -> None:
    assert settings_of(entry.name).model_fields["port"].default == entry.port


@pytest.mark.parametrize("entry", DEPLOYED, ids=lambda entry: entry.name)
def test_a_deployed_service_is_in_every_place(entry: Entry) -> None:
    found = lacking(entry, prefix_of(entry.name))
    assert not found, "\n\n".join(f"{place} lacks {entry.name}; add:\n{text}" for place, text in found.items())


def test_what_a_new_service_lacks_is_named_with_the_lines_to_add() -> None:
    new = Entry("sharpness", 18090, "SHARPNESS_URL", "shelf", gpu=True)
    found = lacking(new, "SHARPNESS_")
    assert set(found) == {
        "docker-compose.yml",
        "docker/prometheus/prometheus.yml",
        "deploy/k8s/services/sharpness/kustomization.yaml",
        "deploy/k8s/overlays/shelf/kustomization.yaml",
        "requirements/services/sharpness.in",
        "services/sharpness/samples.py",
        "docs/openapi/sharpness.json",
        "docs/services.md",
        "trainer/config/rewards.py",
        "trainer/config/service_names.py",
    }
    anchors = "x: &service {}\ny: &healthcheck {}\nservices:\n"
    added = yaml.safe_load(anchors + found["docker-compose.yml"])["services"]["sharpness"]
    assert added["ports"] == ["${BIND_ADDRESS:-127.0.0.1}:18090:18090"] and added["profiles"] == ["shelf"]
    assert added["environment"]["SHARPNESS_HOST"] == "0.0.0.0" and "deploy" in added
    [job] = yaml.safe_load(found["docker/prometheus/prometheus.yml"])
    assert job["dns_sd_configs"][0]["port"] == 18090
    assert yaml.safe_load(found["deploy/k8s/services/sharpness/kustomization.yaml"])["namePrefix"] == "sharpness-"


def test_a_service_that_is_not_deployed_lacks_nothing() -> None:
    assert lacking(Entry("sharpness", 18090), "SHARPNESS_") == {}


def test_an_entry_that_says_something_else_than_the_files_is_found() -> None:
    ocr = next(entry for entry in CATALOGUE if entry.name == "ocr")
    moved = dataclasses.replace(ocr, port=18099)
    assert {"docker-compose.yml", "docker/prometheus/prometheus.yml", "docs/services.md"} <= set(lacking(moved, "OCR_"))
    assert "docker-compose.yml" in lacking(dataclasses.replace(ocr, deployed="shelf"), "OCR_")
    assert "docker-compose.yml" in lacking(dataclasses.replace(ocr, gpu=True), "OCR_")
    assert set(lacking(dataclasses.replace(ocr, url_variable="MY_OCR"), "OCR_")) == {"trainer/config/rewards.py"}


def test_scripts_read_it_with_the_standard_library_alone() -> None:
    command = [sys.executable, "-S", "-m", "services.kit.catalogue"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines() == [f"{each.name} {each.port} {each.deployed or '-'}" for each in CATALOGUE]


def test_the_page_of_services_and_the_trainer_name_no_service_that_is_not_on_the_list() -> None:
    listed = set(re.findall(r"^\| `services\.(\w+)` \| \d+ \|", (ROOT / "docs/services.md").read_text(), re.M))
    assert listed == {entry.name for entry in DEPLOYED} == set(REWARDS)
    assert {path.stem for path in Path(ROOT / "docs/openapi").glob("*.json")} == listed
