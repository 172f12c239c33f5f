"""Reward services that only wait: they answer each request right after a set latency. For benchmarks of the client."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def waiting_service(latency_ms: float, fault: str = "none", every: int = 1) -> Iterator[str]:
    """The base URL of `services.kit.testing.misbehaving` in its own process."""
    command = [sys.executable, "-m", "services.kit.testing.misbehaving", "--port=0", f"--latency-ms={latency_ms}"]
    command += [f"--fault={fault}", f"--every={every}", "--retry-after-s=0"]
    with _started(command) as url:
        yield url


@contextmanager
def turning_service(latencies_ms: Sequence[float], turn: int, skip: int) -> Iterator[str]:
    """The base URL of `benchmarks.turning_service` in its own process."""
    command = [sys.executable, "-m", "benchmarks.turning_service", f"--turn={turn}", f"--skip={skip}", "--latencies-ms"]
    with _started([*command, *map(str, latencies_ms)]) as url:
        yield url


@contextmanager
def _started(command: list[str]) -> Iterator[str]:
    """The last word of what the command says first; it is killed afterwards."""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.kill()


def rewards_tree(urls: Mapping[str, str], **service: Any) -> dict[str, Any]:
    """The rewards section of a config: one column per service, none of which can be told apart by probes."""
    return {
        "services": {name: {"urls": [url], **service} for name, url in urls.items()},
        "columns": {name: {"service": name, "canary": "score", "max_failure_rate": 1.0} for name in urls},
    }


def write_results(path: Path, benchmark: str, rows: list[dict[str, Any]]) -> None:
    """The numbers as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"benchmark": benchmark, "rows": rows}, indent=1) + "\n")
    print(f"\nwritten to {path}")
