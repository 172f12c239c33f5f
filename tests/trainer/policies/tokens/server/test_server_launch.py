"""The command of a rollout server, and its processes: a stand-in for `vllm` that only answers, as a real child."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from trainer.config import ConfigError
from trainer.config.vllm import OURS, VllmLaunchConfig
from trainer.policies.tokens.server import ROOT_VARIABLE
from trainer.policies.tokens.server.launch import (
    _PACKAGES,
    LaunchedServers,
    Serving,
    _merged,
    check_command,
    environment,
)
from trainer.processes.children import ROOT
from trainer.programs.rollout_servers import longest_text
from trainer.types import StopTrainingError

ANSWERS = f"""#!{sys.executable}
import http.server, os, sys
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die":
            os._exit(3)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(repr((sys.argv[1:], dict(os.environ))).encode())
    def log_message(self, *args):
        pass
print("serving", flush=True)
host, port = (sys.argv[sys.argv.index(flag) + 1] for flag in ("--host", "--port"))
http.server.HTTPServer((host, int(port)), Answers).serve_forever()
"""


def serving(folder: Path, **fields: object) -> Serving:
    given = {
        "model": "models/Qwen3-VL-2B-Instruct",
        "name": "policy",
        "dtype": "bfloat16",
        "max_images": 4,
        "longest": 2304,
    }
    return Serving(**{**given, "weights_dir": folder, **fields})  # type: ignore[arg-type]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., LaunchedServers]]:
    made: list[LaunchedServers] = []

    def start(program: str = ANSWERS, **fields: object) -> LaunchedServers:
        path = tmp_path / "vllm"
        path.write_text(program)
        path.chmod(0o755)
        config = VllmLaunchConfig(executable=str(path), **fields)  # type: ignore[arg-type]
        made.append(LaunchedServers(config, serving(tmp_path), tmp_path / "logs", notes(tmp_path).append))
        made[-1].start()
        return made[-1]

    yield start
    for each in made:
        each.stop()


NOTES: dict[Path, list[str]] = {}


def notes(folder: Path) -> list[str]:
    return NOTES.setdefault(folder, [])


def test_the_documented_command_is_the_one_that_is_run() -> None:
    """docs/vllm.md: flags, in order, and the variables that open the routes."""
    page = (ROOT / "docs" / "vllm.md").read_text(encoding="utf-8").partition("## Rollout servers")[2]
    [block] = [each for each in re.findall(r"```bash\n(.*?)```", page, re.S) if "vllm serve" in each]
    words = shlex.split(block.replace("\\\n", " "))
    assignments, command = words[: words.index("vllm")], words[words.index("serve") + 1 :]
    place = command.index("--host")
    assert command[place : place + 4] == ["--host", "127.0.0.1", "--port", "8000"]
    said = command[:place] + command[place + 4 :]
    ours = serving(Path("/dev/shm/rollouts"))
    assert _pairs(said) == _pairs(ours.flags())
    variables = dict(each.split("=", 1) for each in assignments)
    assert variables == ours.variables() | {"PYTHONPATH": "."}


def _pairs(flags: list[str]) -> set[tuple[str, ...]]:
    text = "\0".join(flags)
    return {tuple(each.split("\0")) for each in re.split("\0(?=--)", text)}


def test_adapters_need_no_development_mode() -> None:
    plain = serving(Path("/w"), weights_dir=None, adapter_rank=12, tower_adapters=True)
    flags = plain.flags()
    assert flags[flags.index("--max-lora-rank") + 1] == "16", "vLLM has kernels for some ranks alone"
    assert "--enable-tower-connector-lora" in flags and "--weight-transfer-config" not in flags
    assert plain.variables() == {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}


def test_every_flag_that_decides_what_is_drawn_is_ours_alone() -> None:
    flags = {each for each in serving(Path("/w")).flags() if each.startswith("--")}
    free = {
        "--max-model-len",
        "--limit-mm-per-prompt",
        "--max-logprobs",
        "--generation-config",
        "--allowed-media-domains",
    }
    assert flags - free <= set(OURS)


def test_a_recipe_may_change_the_rest() -> None:
    assert _merged(["m", "--max-model-len", "10", "--x", "--y", "1"], ["--max-model-len=20", "--x"]) == [
        *("m", "--y", "1"),
        *("--max-model-len=20", "--x"),
    ]


def test_a_server_is_no_part_of_the_training_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun's variables would make vLLM wait for the trainer's ranks."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    found = environment({ROOT_VARIABLE: "/w"}, {"PYTHONPATH": "/mine"})
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"} & found.keys()
    assert found[ROOT_VARIABLE] == "/w" and found["PYTHONPATH"] == f"/mine{os.pathsep}{ROOT}"


def test_servers_answer_on_loopback_and_come_back_on_their_port(
    launch: Callable[..., LaunchedServers], tmp_path: Path
) -> None:
    servers = launch(gpus=("0", "1"), args=("--enforce-eager",))
    servers.wait_ready(lambda: False)
    first, second = servers.urls
    assert first.startswith("http://127.0.0.1:") and first != second
    said = httpx.get(second, trust_env=False).text
    assert (
        "'--enforce-eager'" in said and "'CUDA_VISIBLE_DEVICES': '1'" in said and "'VLLM_SERVER_DEV_MODE': '1'" in said
    )
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{first}/die", trust_env=False)
    until = time.monotonic() + 30
    while not any("died; starting it again" in note for note in notes(tmp_path)):
        assert time.monotonic() < until
        servers.look_after()
        time.sleep(0.05)
    servers.wait_ready(lambda: False)
    assert servers.urls == [first, second]
    assert any(first in note and "serving" in note for note in notes(tmp_path)), "its last words are said"


def test_one_that_ends_while_it_starts_is_shown_with_its_log(launch: Callable[..., LaunchedServers]) -> None:
    servers = launch("#!/bin/sh\necho there is no such model\nexit 1\n")
    with pytest.raises(ConfigError, match="ended while it started") as failed:
        servers.wait_ready(lambda: False)
    assert "there is no such model" in str(failed.value)


def test_waiting_for_a_start_ends_by_its_limit_or_a_signal(launch: Callable[..., LaunchedServers]) -> None:
    servers = launch("#!/bin/sh\nsleep 60\n", start_timeout_s=0.3)
    with pytest.raises(StopTrainingError, match="asked to stop while vLLM was starting"):
        servers.wait_ready(lambda: True)
    with pytest.raises(ConfigError, match=r"start_timeout_s = 0.3 s"):
        servers.wait_ready(lambda: False)


def test_a_missing_command_is_said_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"launch\.executable = no-such-vllm is no command: install vLLM"):
        LaunchedServers(VllmLaunchConfig(executable="no-such-vllm"), serving(tmp_path), tmp_path, print)


def python_without(folder: Path, *packages: str) -> Path:
    """A `bin` folder with vLLM's command and the Python that runs it, which is asked for packages and does not have these."""
    folder.mkdir()
    asked = folder / "python"
    asked.write_text(f'#!/bin/sh\ncase "$3" in {"|".join(packages) or "-"}) echo False;; *) echo True;; esac\n')
    command = folder / "vllm"
    command.write_text(f"#!{asked}\n")
    for path in (asked, command):
        path.chmod(0o755)
    return command


@pytest.mark.parametrize("named", [True, False], ids=["by the first line", "beside the command"])
def test_a_package_that_vllm_would_miss_is_said_before_anything_starts(tmp_path: Path, named: bool) -> None:
    """SmolVLM's processor asks for num2words, for the frames of videos; this trainer does without, vLLM does not."""
    command = python_without(tmp_path / "bin", "num2words")
    if not named:
        command.write_text("#!/bin/sh\nexec something\n")
    config, logs = VllmLaunchConfig(executable=str(command)), tmp_path / "logs"
    with pytest.raises(ConfigError) as told:
        LaunchedServers(config, serving(tmp_path, model_type="smolvlm"), logs, print)
    assert f"launch.executable = {command} cannot serve a model of type smolvlm" in str(told.value)
    assert f"{command.with_name('python')} -m pip install num2words" in str(told.value)
    assert "sampling.engine: local" in str(told.value) and not logs.exists()
    check_command(config, "idefics3")
    check_command(VllmLaunchConfig(executable=str(python_without(tmp_path / "whole"))), "smolvlm")


def test_an_interpreter_is_asked_with_the_servers_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package may be there by PYTHONPATH alone; a command that no Python is seen to run is left to say itself what it lacks."""
    command = tmp_path / "vllm"
    command.write_text(f"#!{sys.executable}\n")
    command.chmod(0o755)
    extra = tmp_path / "extra"
    extra.mkdir()
    (extra / "nowhere_installed.py").touch()
    monkeypatch.setitem(_PACKAGES, "smolvlm", "nowhere_installed")
    check_command(VllmLaunchConfig(executable=str(command), env={"PYTHONPATH": str(extra)}), "smolvlm")
    with pytest.raises(ConfigError, match="lacks the package nowhere_installed"):
        check_command(VllmLaunchConfig(executable=str(command)), "smolvlm")
    command.write_text("#!/bin/sh\n")
    check_command(VllmLaunchConfig(executable=str(command)), "smolvlm")


@pytest.mark.parametrize(
    ("positions", "rope", "longest"),
    [
        (256, {"rope_type": "default"}, 256),
        (4096, {"rope_type": "default"}, 2068),
        (256, {"rope_type": "linear", "factor": 16.0}, 2068),
    ],
)
def test_a_server_is_told_no_more_tokens_than_the_model_has_positions(
    positions: int, rope: dict[str, Any], longest: int
) -> None:
    """vLLM does not start otherwise: the small VLM has 256, and policy.max_prompt_tokens is 2,048 where a recipe leaves it out."""
    from transformers import LlamaConfig

    config = LlamaConfig(max_position_embeddings=positions, rope_parameters={"rope_theta": 1e4, **rope})
    assert longest_text(SimpleNamespace(config=config), 2068) == longest
