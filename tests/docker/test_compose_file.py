"""docker-compose.yml: valid, hardened, and in agreement with the services' own settings."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from services.kit.catalogue import DEPLOYED
from services.kit.settings import MIB
from tests.support.deployment import (
    COMPOSE_FILE,
    ROOT,
    MissingVariableError,
    Tree,
    compose,
    env_file,
    interpolated,
    own_services,
    prefix_of,
    settings_of,
    variables,
)

SERVICES = compose()["services"]
OURS = {entry.name: entry.port for entry in DEPLOYED}
SHELF = {entry.name: entry.port for entry in DEPLOYED if entry.deployed == "shelf"}
MODELS = {entry.name: entry.port for entry in DEPLOYED if entry.deployed == "shelf" and entry.gpu}
PUBLISHED = OURS | {"grafana": 3000}
JUDGES = {"UNIFIEDREWARD_MODEL_DIR", "UNIFIEDREWARD_GPUS", "EVAL_MODEL_DIR", "EVAL_GPUS"}
REQUIRED = {"HPS_MODEL_DIR", "HPS_GPU", "CLIP_MODEL_DIR"} | JUDGES


def mebibytes(size: str) -> int:
    units = {"m": 1, "g": 1024}
    return int(size[:-1]) * units[size[-1]]


def seconds(span: str) -> int:
    return int(span[:-1]) * {"s": 1, "m": 60}[span[-1]]


def test_it_is_valid_by_the_compose_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE_FILE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_has_every_service_and_what_it_needs() -> None:
    assert set(own_services()) == {*OURS, "ocr-worker"}
    others = {"redis", "unifiedreward-vllm", "eval-vllm", "prometheus", "grafana"}
    assert set(SERVICES) == set(own_services()) | others
    assert {name for name, service in SERVICES.items() if service.get("profiles") == ["observe"]} == {
        "prometheus",
        "grafana",
    }
    assert {name for name, service in SERVICES.items() if service.get("profiles") == ["shelf"]} == set(SHELF)
    assert "profiles" not in SERVICES["clip"]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_container_is_confined(name: str) -> None:
    service = SERVICES[name]
    uid = int(service["user"].partition(":")[0])
    assert uid > 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"] and "cap_add" not in service and "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert mebibytes(service["mem_limit"]) > 0 and service["pids_limit"] > 0
    assert service["restart"] == "unless-stopped"
    assert service["logging"]["options"] == {"max-size": "20m", "max-file": "5"}
    assert service["healthcheck"]["test"]
    assert ":latest" not in service["image"] or "build" in service


def test_only_the_services_and_grafana_are_published_and_only_to_this_machine() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if service.get("ports")}
    assert published == {name: [f"127.0.0.1:{port}:{port}"] for name, port in PUBLISHED.items()}
    everywhere = compose({"BIND_ADDRESS": "0.0.0.0"})["services"]
    assert everywhere["ocr"]["ports"] == ["0.0.0.0:18082:18082"]


def test_redis_and_the_judges_are_on_networks_without_a_way_out() -> None:
    networks = compose()["networks"]
    internal = {name for name, network in networks.items() if network.get("internal")}
    for name in ("redis", "unifiedreward-vllm", "eval-vllm"):
        assert set(SERVICES[name]["networks"]) <= internal, name
    assert networks["edge"]["driver_opts"] == {"com.docker.network.bridge.enable_ip_masquerade": "false"}


@pytest.mark.parametrize("name", sorted(own_services()))
def test_a_service_agrees_with_its_settings(name: str) -> None:
    service = own_services()[name]
    arguments = service["build"]["args"]
    settings = settings_of(arguments["SERVICE"])
    fields = settings.model_fields
    assert int(arguments["PORT"]) == fields["port"].default
    prefix = prefix_of(arguments["SERVICE"])
    for variable in service["environment"]:
        # An unknown variable would be ignored without a word.
        assert variable.startswith(prefix) and variable.removeprefix(prefix).lower() in fields, variable
    assert service["environment"][prefix + "HOST"] == "0.0.0.0"
    assert service["environment"][prefix + "TOKEN_FILE"] == "/run/secrets/reward_tokens"
    assert service["secrets"] == ["reward_tokens"]
    assert service["env_file"] == [{"path": "services.env", "required": False}]
    assert service["environment"][prefix + "REDIS"] == "redis://redis:6379/0"
    assert service["depends_on"]["redis"] == {"condition": "service_healthy"}
    assert seconds(service["stop_grace_period"]) >= fields["drain_s"].default + 10
    assert mebibytes(service["mem_limit"]) * MIB > 1.5 * fields["max_memory_bytes"].default
    assert service["healthcheck"]["test"] == ["CMD", "python3", "docker/ready.py"]


@pytest.mark.parametrize("name", sorted(own_services()))
def test_the_environment_of_a_service_is_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = own_services()[name]
    for variable, value in service["environment"].items():
        monkeypatch.setenv(variable, str(value))
    settings = settings_of(service["build"]["args"]["SERVICE"])()
    assert settings.host == "0.0.0.0" and settings.redis is not None
    assert settings.role == ("worker" if name == "ocr-worker" else "all")


@pytest.mark.parametrize("name", ["unifiedreward", "eval"])
def test_a_gateway_asks_its_own_judge(name: str) -> None:
    gateway, judge = SERVICES[name], SERVICES[f"{name}-vllm"]
    flags = flags_of(judge)
    prefix = name.upper() + "_"
    assert gateway["environment"][prefix + "JUDGE_URL"] == f"http://{name}-vllm:{flags['port']}"
    assert gateway["environment"][prefix + "MODEL"] == flags["served-model-name"]
    assert set(gateway["networks"]) & set(judge["networks"]) == {"judges"}
    assert gateway["depends_on"][f"{name}-vllm"] == {"condition": "service_healthy"}
    assert f":{flags['port']}/health" in judge["healthcheck"]["test"][-1]


@pytest.mark.parametrize("name", ["vqa", "textjudge"])
def test_a_gateway_without_a_judge_asks_one_that_is_there_until_told_of_another(name: str) -> None:
    gateway, judge, prefix = SERVICES[name], SERVICES["unifiedreward-vllm"], name.upper() + "_"
    flags = flags_of(judge)
    assert gateway["environment"][prefix + "JUDGE_URL"] == f"http://unifiedreward-vllm:{flags['port']}"
    assert gateway["environment"][prefix + "MODEL"] == flags["served-model-name"]
    assert set(gateway["networks"]) & set(judge["networks"]) == {"judges"}
    other = compose({prefix + "JUDGE_URL": "http://eval-vllm:8000"})["services"][name]["environment"]
    assert other[prefix + "JUDGE_URL"] == "http://eval-vllm:8000"


def test_the_judges_have_the_ports_of_the_design_and_flags_that_still_exist() -> None:
    assert flags_of(SERVICES["unifiedreward-vllm"])["port"] == "8001"
    assert flags_of(SERVICES["eval-vllm"])["port"] == "8000"
    for name in ("unifiedreward-vllm", "eval-vllm"):
        judge = SERVICES[name]
        flags = flags_of(judge)
        assert re.fullmatch(r"vllm/vllm-openai:v0\.(1[2-9]|[2-9]\d)\.\d+", judge["image"])
        assert "disable-log-requests" not in flags and "trust-remote-code" not in flags
        assert "enable-prefix-caching" in flags
        assert json.loads(flags["limit-mm-per-prompt"])["image"] >= 2
        assert flags["allowed-media-domains"] == "none.invalid"
        assert judge["environment"]["HF_HUB_OFFLINE"] == "1"


def flags_of(judge: Tree) -> dict[str, str]:
    assert judge["entrypoint"] == ["vllm", "serve"] and judge["command"][0] == "/model"
    return {flag.removeprefix("--").partition("=")[0]: flag.partition("=")[2] for flag in judge["command"][1:]}


def test_redis_keeps_jobs_and_drops_only_what_expires() -> None:
    redis = SERVICES["redis"]
    words = redis["command"].split()
    flags = dict(zip(words[1::2], words[2::2], strict=True))
    assert words[0] == "redis-server" and redis["image"].startswith("redis:7.")
    assert flags["--appendonly"] == "yes"
    assert flags["--maxmemory-policy"] == "volatile-lru"
    assert mebibytes(redis["mem_limit"]) >= 1.5 * mebibytes(flags["--maxmemory"].removesuffix("b"))
    assert redis["volumes"] == ["redis-data:/data"]


@pytest.mark.parametrize("name", ["hps", "clip", *MODELS, "unifiedreward-vllm", "eval-vllm"])
def test_models_are_mounted_read_only_and_never_made_up(name: str) -> None:
    prefix = prefix_of(name.removesuffix("-vllm"))
    gpus = f"{prefix}GPUS" if name.endswith("-vllm") else f"{prefix}GPU"
    service = compose({f"{prefix}MODEL_DIR": "/models/it", gpus: "1,2"})["services"][name]
    assert service["volumes"] == [
        {
            "type": "bind",
            "source": "/models/it",
            "target": "/model",
            "read_only": True,
            "bind": {"create_host_path": False},
        }
    ]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["1,2"], "capabilities": ["gpu"]}


@pytest.mark.parametrize("name", ["clip", *MODELS])
def test_light_services_share_the_gpu_of_hps_until_told_otherwise(name: str) -> None:
    def gpu_in(environment: dict[str, str]) -> object:
        (device,) = compose(environment)["services"][name]["deploy"]["resources"]["reservations"]["devices"]
        return device["device_ids"]

    assert gpu_in({"HPS_GPU": "3"}) == ["3"]
    assert gpu_in({"HPS_GPU": "3", f"{prefix_of(name)}GPU": "5"}) == ["5"]


def test_what_must_be_set_is_required_with_a_sentence() -> None:
    required = {match["name"]: match["rest"] for match in variables() if match["kind"] == "?"}
    assert set(required) == REQUIRED
    assert all(sentence.startswith("set it in .env to ") for sentence in required.values())
    assert all(match["kind"] is not None for match in variables()), "a variable has neither a default nor a message"
    assert set(env_file("docker/cpu.env")) == REQUIRED
    assert set(env_file(".env.example")) >= REQUIRED
    assert not any(env_file(".env.example")[name] for name in REQUIRED)
    assert set(env_file(".env.example")) <= {match["name"] for match in variables()}


@pytest.mark.parametrize("missing", sorted(REQUIRED))
def test_each_missing_value_is_named(missing: str) -> None:
    environment = {**dict.fromkeys(REQUIRED, "x"), missing: ""}
    with pytest.raises(MissingVariableError, match=f"^{missing}: set it in .env to "):
        interpolated(COMPOSE_FILE.read_text(), environment)


def test_every_variable_is_documented() -> None:
    page = (ROOT / "docs/compose.md").read_text()
    assert [match["name"] for match in variables() if f"`{match['name']}`" not in page] == []


def compose_command() -> list[str] | None:
    """A compose client; its `config` needs no engine."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, "version"], capture_output=True, timeout=30, check=False)
            if done.returncode == 0 and re.search(rb"version v?([2-9]|\d\d)", done.stdout):
                return command
    return None


@pytest.mark.parametrize("missing", [None, *sorted(REQUIRED)])
def test_a_real_compose_reads_it_as_we_do(missing: str | None, tmp_path: Path) -> None:
    command = compose_command()
    if command is None:
        pytest.skip("no docker compose here")
    (tmp_path / ".env").write_text("".join(f"{name}=x\n" for name in REQUIRED - {missing}))
    arguments = ["--project-directory", str(tmp_path), "--env-file", str(tmp_path / ".env"), "--profile", "*"]
    done = subprocess.run(
        [*command, "-f", str(COMPOSE_FILE), *arguments, "config", "--format", "json"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if missing is None:
        assert done.returncode == 0, done.stderr
        read = json.loads(done.stdout)["services"]
        assert set(read) == set(SERVICES)
        assert all(read[name].get("environment") for name in own_services())
    else:
        assert done.returncode != 0 and f"{missing} is missing a value: set it in .env to" in done.stderr
