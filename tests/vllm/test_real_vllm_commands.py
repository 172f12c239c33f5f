"""Every command with which this repository starts vLLM is one that vLLM itself accepts."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest
import yaml

from tests.support.deployment import ROOT, compose
from tests.support.vllm_server import VLLM, flag_errors, missing

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=missing() or "")]

REQUIRED = ("HPS_GPU", "UNIFIEDREWARD_MODEL_DIR", "UNIFIEDREWARD_GPUS", "EVAL_MODEL_DIR", "EVAL_GPUS")


def compose_commands():
    """By service; compose puts `command` behind `entrypoint`."""
    services = compose(dict.fromkeys(REQUIRED, "1"))["services"]
    return {
        f"compose {name}": [*service["entrypoint"], *service["command"]]
        for name, service in services.items()
        if str(service.get("image", "")).startswith("vllm/")
    }


def kubernetes_commands():
    commands = {}
    for path in sorted((ROOT / "deploy" / "k8s").rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            for container in _containers(document):
                if container.get("command", [None])[0] == "vllm":
                    name = f"{path.relative_to(ROOT)} {container['name']}"
                    commands[name] = [*container["command"], *container.get("args", [])]
    return commands


def printed_commands():
    """Of `vllm-command`, for eight GPUs in each way to share them, and for none."""
    commands = {}
    for mode, gpus in (("dp", "0,1,2,3,4,5,6,7"), ("tp", "0,1,2,3,4,5,6,7"), ("none", "0"), ("none", "")):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "services.unifiedreward",
                "vllm-command",
                "--model=model",
                f"--vllm-executable={VLLM}",
            ],
            env=os.environ | {"VLLM_PARALLEL_MODE": mode, "CUDA_VISIBLE_DEVICES": gpus},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        commands[f"vllm-command {mode} on {gpus or 'no GPU'}"] = shlex.split(done.stdout)
    return commands


def _containers(tree):
    """All containers below a node of a manifest."""
    if isinstance(tree, dict):
        yield from tree.get("containers") or ()
        for value in tree.values():
            yield from _containers(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _containers(value)


REMOVED = ["vllm", "serve", "model", "--disable-log-requests"]  # the published start scripts of the judges use it


@pytest.fixture(scope="module")
def errors():
    """What vLLM's parser says of each command, by name; "" where it takes it."""
    commands = compose_commands() | kubernetes_commands() | printed_commands() | {"removed": REMOVED}
    said = flag_errors([command[1:] for command in commands.values()])
    return dict(zip(commands, said, strict=True))


def test_vllm_accepts_the_flags_of_every_command(errors):
    assert len(errors) >= 8
    assert {name: error for name, error in errors.items() if error and name != "removed"} == {}


def test_a_flag_that_vllm_removed_is_found(errors):
    assert "unrecognized arguments: --disable-log-requests" in errors["removed"]
