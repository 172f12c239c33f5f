"""vLLM servers that the run starts: their command, their processes, and their second start when one dies."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from trainer.config import ConfigError
from trainer.config.vllm import VllmLaunchConfig
from trainer.policies.tokens.server import ROOT_VARIABLE
from trainer.processes.children import OURS, Child
from trainer.types import StopTrainingError

MAX_RESTARTS = 5  # in a row, without weights between them
_POLL_S = 0.2
_PROGRESS_S = 30.0
_ADAPTER_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has kernels for
# Packages that vLLM's environment must have beside vLLM, by the type of the model. vLLM builds transformers' processors whole, and
# SmolVLM's is not made without the one that spells how many frames a video has.
_PACKAGES = {"smolvlm": "num2words"}
_ASK_S = 60.0  # for an interpreter to start and to look for a package
# torchrun's, which would make a server a part of the training group, and those of our own environment.
_NOT_FOR_SERVERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "VIRTUAL_ENV")


@dataclass(frozen=True)
class Serving:
    """What servers must be told for rollouts, wherever they run.

    Attributes:
        model: folder of model, processor and tokenizer.
        name: the model's name at the servers.
        dtype: of their computations.
        max_images: of one prompt.
        longest: tokens of prompt and answer together.
        weights_dir: below which new weights are read; None where adapters are loaded.
        adapter_rank: None where whole weights are pushed.
        tower_adapters: whether the vision tower or the projector has adapters, too.
        model_type: of the model's config.json.
    """

    model: str
    name: str
    dtype: str
    max_images: int
    longest: int
    weights_dir: Path | None
    adapter_rank: int | None = None
    tower_adapters: bool = False
    model_type: str = ""

    def flags(self) -> list[str]:
        """Arguments of `vllm serve`, but for the address."""
        limits = json.dumps({"image": self.max_images, "video": 0})
        flags = [
            *(self.model, "--served-model-name", self.name, "--dtype", self.dtype),
            *("--max-model-len", str(self.longest), "--limit-mm-per-prompt", limits),
            # Token ids in and out; log-probabilities of the distribution that is drawn from.
            *("--enable-scale-out", "--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1"),
            *("--generation-config", "vllm"),  # else the checkpoint's own temperature and penalties act
            *("--allowed-media-domains", "none.invalid"),  # else it fetches whatever URL a message names
        ]
        if self.adapter_rank is not None:
            rank = next((each for each in _ADAPTER_RANKS if each >= self.adapter_rank), self.adapter_rank)
            # Two: the old one is unloaded once the new one has been proved.
            flags += ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", "2"]
            return flags + (["--enable-tower-connector-lora"] if self.tower_adapters else [])
        extension = "trainer.policies.tokens.server.worker.FileTransfer"
        return [*flags, "--worker-extension-cls", extension, "--weight-transfer-config", '{"backend": "file"}']

    def variables(self) -> dict[str, str]:
        """Environment variables that open the routes."""
        if self.adapter_rank is not None:
            return {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
        return {"VLLM_SERVER_DEV_MODE": "1", ROOT_VARIABLE: str(self.weights_dir)}


class LaunchedServers:
    """The servers of `sampling.vllm.launch`, each on 127.0.0.1 and a free port that it keeps when it is started again.

    Args:
        log_dir: takes `server<n>.log`.
        notify: takes a line about each start and death.

    Raises:
        ConfigError: see `check_command`.
    """

    def __init__(
        self, config: VllmLaunchConfig, serving: Serving, log_dir: Path, notify: Callable[[str], None]
    ) -> None:
        check_command(config, serving.model_type)
        log_dir.mkdir(parents=True, exist_ok=True)
        self._config, self._serving, self._notify = config, serving, notify
        self._children = [Child(log_dir / f"server{n}.log") for n in range(config.count)]
        self._ports = [_free_port() for _ in self._children]
        self._restarts = [0] * config.count
        self._given_up = [False] * config.count
        self._again_at = [0.0] * config.count

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self._ports]

    def start(self) -> None:
        """Start all; they load the model beside whatever this process does next."""
        self._notify(f"starting vLLM for rollouts at {', '.join(self.urls)}")
        for number in range(len(self._children)):
            self._spawn(number)

    def wait_ready(self, stop_asked: Callable[[], bool]) -> None:
        """Wait until every server answers.

        Raises:
            ConfigError: one ended, or took too long; with the end of its log.
            StopTrainingError: the run is to stop.
        """
        started, next_report_s = time.monotonic(), _PROGRESS_S
        waiting = dict(enumerate(self.urls))
        while waiting:
            passed_s = time.monotonic() - started
            for number, url in list(waiting.items()):
                child = self._children[number]
                if not child.alive():
                    raise ConfigError(
                        f"vLLM at {url} ended while it started; its log ({child.log_path}):\n{child.tail()}"
                    )
                if answers(url):
                    self._notify(f"vLLM at {url} is ready after {passed_s:.0f} s")
                    del waiting[number]
            if waiting and passed_s > self._config.start_timeout_s:
                child = self._children[next(iter(waiting))]
                raise ConfigError(
                    f"vLLM was not ready within sampling.vllm.launch.start_timeout_s = {self._config.start_timeout_s:g} s; raise "
                    f"it where the model only needs longer. Its log ({child.log_path}):\n{child.tail()}"
                )
            if stop_asked():
                raise StopTrainingError("asked to stop while vLLM was starting")
            if waiting and passed_s > next_report_s:
                next_report_s += _PROGRESS_S
                self._notify(f"still waiting for vLLM at {', '.join(waiting.values())} ({passed_s:.0f} s)")
            time.sleep(_POLL_S)

    def look_after(self) -> None:
        """Start again what died. Called every now and then."""
        for number, (child, url) in enumerate(zip(self._children, self.urls, strict=True)):
            if self._given_up[number] or child.alive() or time.monotonic() < self._again_at[number]:
                continue
            child.reap()
            if self._restarts[number] == MAX_RESTARTS:
                self._given_up[number] = True
                self._notify(f"vLLM at {url} died {MAX_RESTARTS + 1} times and stays down; its log:\n{child.tail()}")
                continue
            self._notify(f"vLLM at {url} died; starting it again. Its last words:\n{child.tail(5)}")
            # One that dies at once must not use up its restarts in a second.
            self._again_at[number] = time.monotonic() + 2.0 ** self._restarts[number]
            self._restarts[number] += 1
            self._spawn(number)

    def has_weights(self, url: str) -> None:
        """The server has loaded a version: what went before is forgiven."""
        self._restarts[self.urls.index(url)] = 0

    def stop(self) -> None:
        """Stop all, in parallel. May be called more than once."""
        for child in self._children:
            child.terminate()
        for child in self._children:
            child.wait()

    def _spawn(self, number: int) -> None:
        config = self._config
        address = ["--host", "127.0.0.1", "--port", str(self._ports[number])]
        command = [config.executable, "serve", *_merged(self._serving.flags(), config.args), *address]
        gpus = {"CUDA_VISIBLE_DEVICES": config.gpus[number]} if config.gpus else {}
        self._children[number].spawn(command, environment(self._serving.variables() | gpus, config.env))


def check_command(config: VllmLaunchConfig, model_type: str) -> None:
    """Raises ConfigError where there is no such command, or where its environment surely lacks a package without which vLLM does
    not start with models of this type: it would say so only minutes later, at the end of a long log."""
    found = shutil.which(config.executable)
    if found is None:
        raise ConfigError(
            f"sampling.vllm.launch.executable = {config.executable} is no command: install vLLM in an environment of its "
            "own (docs/vllm.md) and name its bin/vllm"
        )
    package, python = _PACKAGES.get(model_type), _interpreter(Path(found))
    if package is None or python is None or _has(python, package, config):
        return
    raise ConfigError(
        f"vLLM at sampling.vllm.launch.executable = {config.executable} cannot serve a model of type {model_type}: its environment "
        f"lacks the package {package}, which transformers' processor of these models asks for. Install it there:\n"
        f"    {python} -m pip install {package}\n"
        "or set sampling.engine: local, which does without"
    )


def _interpreter(command: Path) -> Path | None:
    """The Python that runs a command, by the command's first line; else the one beside it. None: a command of another kind."""
    try:
        with command.open("rb") as file:
            first = file.readline(4096)
    except OSError:  # a command that may be run and not be read
        return None
    words = first[2:].decode(errors="replace").split() if first.startswith(b"#!") else []
    named = Path(words[0]) if words else command
    if not named.name.startswith("python"):
        named = command.resolve().with_name("python")
    return named if named.is_file() else None


def _has(python: Path, package: str, config: VllmLaunchConfig) -> bool:
    """Whether an interpreter finds a package, with a server's variables. An interpreter that gives no answer counts as one that
    does: the server will say what is wrong."""
    look = "import importlib.util, sys; print(importlib.util.find_spec(sys.argv[1]) is not None)"
    try:
        told = subprocess.run(
            [python, "-c", look, package],
            env=environment({}, config.env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ASK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return True
    return told.stdout.strip() != "False"


def environment(ours: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """A server's environment variables: this process's without those of its training group, ours, and the recipe's."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _NOT_FOR_SERVERS and not name.startswith("TORCHELASTIC_")
    }
    path = os.pathsep.join(filter(None, [given.get("PYTHONPATH"), *OURS]))
    return kept | dict(ours) | dict(given) | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def _merged(flags: Sequence[str], given: Sequence[str]) -> list[str]:
    """The flags, without the pairs whose name the recipe gives, and the recipe's."""
    names = {each.partition("=")[0] for each in given if each.startswith("--")}
    kept, skip = [], False
    for number, each in enumerate(flags):
        if skip:
            skip = False
        elif each in names:
            skip = number + 1 < len(flags) and not flags[number + 1].startswith("--")
        else:
            kept.append(each)
    return [*kept, *given]


def answers(url: str) -> bool:
    """Whether a server is there and says that it works."""
    try:
        return httpx.get(f"{url}/health", timeout=5.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
