"""Processes of a fake reward service, and a load of pictures for them whose every answer is checked."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[1]
SIDE = 64  # pixels
_RETRY = {429, 503}


class Process:
    """`python -m services.kit.testing.fakes` with these flags; it listens when the constructor returns, or soon after."""

    def __init__(self, log: Path, *flags: str) -> None:
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "services.kit.testing.fakes", "--port=0", "--behaviour=slow", *flags],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self._url: str | None = None

    @property
    def url(self) -> str:
        """Waits until the process listens."""
        if self._url is None:
            assert self._process.stdout is not None
            line = self._process.stdout.readline().decode()
            if " listening on " not in line:
                raise RuntimeError(f"a service did not start: {Path(self._log.name).read_text()[-2000:]}")
            self._url = line.split()[-1]
        return self._url

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def metrics(self) -> Counter[str]:
        """The process's counters and gauges, summed over their labels."""
        sums: Counter[str] = Counter()
        for line in httpx.get(f"{self.url}/metrics", trust_env=False).text.splitlines():
            if not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                sums[name.partition("{")[0]] += float(value)  # type: ignore[assignment]  # sums, not counts
        return sums

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """End it; returns the exit status."""
        self._process.send_signal(number)
        status = self._process.wait(60)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()
        return status


@dataclass
class Report:
    """What became of a load."""

    answered: Counter[str] = field(default_factory=Counter)  # by item id, whatever the answer
    failed: Counter[str] = field(default_factory=Counter)  # by error code
    wrong: int = 0
    cached: int = 0
    refused: Counter[int] = field(default_factory=Counter)  # by status; these requests were tried again
    disconnects: int = 0
    seconds: list[float] = field(default_factory=list)  # of each request, from the first try to the answer
    wall_s: float = 0.0

    def percentile_ms(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000


def make_requests(jobs: int, repeats: int, per_request: int, seed: int) -> list[list[tuple[str, int]]]:
    """(item id, picture number) pairs: every picture once, and `repeats` of them again later."""
    draw = random.Random(seed)
    numbers = list(range(jobs)) + [draw.randrange(jobs) for _ in range(repeats)]
    items = [(f"item-{place}", number) for place, number in enumerate(numbers)]
    return [items[start : start + per_request] for start in range(0, len(items), per_request)]


async def run_load(
    urls: Sequence[str], requests: list[list[tuple[str, int]]], concurrency: int, report: Report
) -> None:
    """Send all requests, so many at a time, in turn to the urls. What is refused is tried again until it is taken."""
    waiting = iter(list(enumerate(requests)))
    limits = httpx.Limits(max_connections=None)
    started = time.perf_counter()
    async with httpx.AsyncClient(timeout=httpx.Timeout(300, connect=10), limits=limits, trust_env=False) as client:

        async def ask() -> None:
            for number, items in waiting:
                first = time.perf_counter()
                answer = await _until_taken(client, urls[number % len(urls)], items, report)
                report.seconds.append(time.perf_counter() - first)
                _check(answer, items, report)

        await asyncio.gather(*(ask() for _ in range(concurrency)))
    report.wall_s = time.perf_counter() - started


async def _until_taken(
    client: httpx.AsyncClient, url: str, items: list[tuple[str, int]], report: Report
) -> dict[str, list[dict[str, object]]]:
    fields = [
        {
            "id": item_id,
            "prompt": _prompt(number),
            "images": [{"media_type": "image/x-rgb8", "part": item_id, "width": SIDE, "height": SIDE}],
        }
        for item_id, number in items
    ]
    files: list[tuple[str, tuple[str, bytes]]] = [("request", ("request", json.dumps({"items": fields}).encode()))]
    files += [(item_id, (item_id, _pixels(number))) for item_id, number in items]
    while True:
        try:
            answer = await client.post(f"{url}/v1/score", files=files)
        except httpx.TransportError:
            report.disconnects += 1
        else:
            if answer.status_code == 200:
                tree: dict[str, list[dict[str, object]]] = answer.json()
                return tree
            report.refused[answer.status_code] += 1
            if answer.status_code not in _RETRY:
                raise RuntimeError(f"status {answer.status_code}: {answer.text[:500]}")
        await asyncio.sleep(random.uniform(0.1, 0.3))


def _check(answer: dict[str, list[dict[str, object]]], items: list[tuple[str, int]], report: Report) -> None:
    expected = dict(items)
    for result in answer["results"]:
        item_id = str(result["id"])
        report.answered[item_id] += 1
        error = result["error"]
        if isinstance(error, dict):
            report.failed[error["code"]] += 1
            continue
        prompt = _prompt(expected[item_id])
        right = result["score"] == len(prompt) and result["details"] == {"prompt": prompt}
        report.wrong += not right
        report.cached += bool(result["cached"])


def _prompt(number: int) -> str:
    return f"picture {number} " + "x" * (number % 97)


def _pixels(number: int) -> bytes:
    return number.to_bytes(4, "big") * (SIDE * SIDE * 3 // 4)
