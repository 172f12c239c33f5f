"""`python -m services.unifiedreward [serve|vllm-command] ...`; each command's --help names its flags."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence

from services.kit import run
from services.kit.judge.passthrough import PassThrough
from services.kit.settings import load_settings
from services.unifiedreward.scorer import UnifiedRewardScorer
from services.unifiedreward.settings import UnifiedRewardSettings
from services.unifiedreward.supervisor import Supervisor
from services.unifiedreward.vllm_command import count_gpus, vllm_command, vllm_environment
from services.unifiedreward.vllm_settings import ServeSettings

USAGE = """\
usage: python -m services.unifiedreward [flags]               the gateway, before a judge that runs already
       python -m services.unifiedreward serve [flags]         starts vLLM with the model, then the gateway
       python -m services.unifiedreward vllm-command [flags]  prints the command with which `serve` starts vLLM

Each command's --help names its flags; each flag is also a variable, such as UNIFIEDREWARD_MODEL."""

_PROG = "python -m services.unifiedreward"


def run_gateway(settings: UnifiedRewardSettings) -> None:
    """Serve until SIGTERM. Raises ValueError, with the remedy, when a setting cannot be used."""
    scorer = UnifiedRewardScorer(settings)
    passing = PassThrough(scorer.client, settings.passthrough_limit)
    run.serve(lambda: scorer, settings, "unifiedreward", passing.add_routes)


def gateway_command(arguments: Sequence[str]) -> None:
    run_gateway(load_settings(UnifiedRewardSettings, arguments, prog=_PROG))


def serve_command(arguments: Sequence[str]) -> None:
    """vLLM beside the gateway, started again when it dies; both end together.

    Raises ValueError, with the remedy, when a setting cannot be used or there is no vLLM.
    """
    settings = load_settings(ServeSettings, arguments, prog=f"{_PROG} serve")
    if shutil.which(settings.vllm_executable) is None:
        raise ValueError(
            f"no program {settings.vllm_executable!r}: install vLLM, in an environment of its own, "
            f"and name its program with --vllm-executable (VLLM_EXECUTABLE)"
        )
    command = vllm_command(settings.vllm_options(), count_gpus())
    print(f"starting {shlex.join(command)}", flush=True)
    with Supervisor(command, vllm_environment(os.environ, settings.endpoint().key)):
        run_gateway(settings)


def print_command(arguments: Sequence[str]) -> None:
    settings = load_settings(ServeSettings, arguments, prog=f"{_PROG} vllm-command")
    print(shlex.join(vllm_command(settings.vllm_options(), count_gpus())))


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "gateway": gateway_command,
    "serve": serve_command,
    "vllm-command": print_command,
}


def main(arguments: Sequence[str]) -> None:
    if list(arguments) in (["-h"], ["--help"]):
        print(f"{USAGE}\n")
    command, rest = "gateway", arguments
    if arguments and not arguments[0].startswith("-"):
        command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        raise SystemExit(f"no command {command!r}\n{USAGE}")
    try:
        COMMANDS[command](rest)
    except (ValueError, OSError) as error:
        raise SystemExit(f"unifiedreward did not start: {error}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
